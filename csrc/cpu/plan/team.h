// SPDX-License-Identifier: Apache-2.0
// The threads that run a step together, and the barrier between steps.
#pragma once

#include <atomic>
#include <cstdint>

#include "../../common/shape.h"

namespace fastcnn {
namespace plan {

// A part of [0, count): parts differ by one at most.
struct Range {
  int64_t begin, end;
};

class Barrier {
 public:
  explicit Barrier(int size) : size_(size) {}
  void wait();

 private:
  // Spins for about 50 us, then gives its time slice away: a thread of the team may not be running at all.
  static constexpr int kSpins = 2000;
  const int size_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
};

struct Team {
  int rank = 0, size = 1;
  Barrier* barrier = nullptr;

  void wait() const {
    if (size > 1) barrier->wait();
  }
  Range share(int64_t count) const { return {count * rank / size, count * (rank + 1) / size}; }
};

// Whether all threads of a parallel region are there. A pool may run fewer, or one late: a barrier would wait for ever, or
// for long. The first thread waits a moment for the others, then says who works: all, or it alone.
class Muster {
 public:
  explicit Muster(int size) : others_(size - 1) {}
  bool lead();   // the first thread: true when every other one has joined
  bool join();   // any other thread: true when it belongs to the team

 private:
  enum Verdict : int { kOpen, kTogether, kAlone };
  static constexpr int kSpins = 2000;  // about 100 us
  const int others_;
  std::atomic<int> joined_{0};
  std::atomic<int> verdict_{kOpen};
};

}  // namespace plan
}  // namespace fastcnn
