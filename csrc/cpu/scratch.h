// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#include "../common/namespace.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {

// Uninitialised, on a cache line; freed at the end of the scope.
template <typename A> class Scratch {
 public:
  explicit Scratch(int64_t count) {
    constexpr size_t kLine = 64;
    memory_ = static_cast<A*>(std::aligned_alloc(kLine, (size_t(count) * sizeof(A) / kLine + 1) * kLine));
    if (memory_ == nullptr) throw std::bad_alloc();
  }
  ~Scratch() { std::free(memory_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  operator A*() const { return memory_; }

 private:
  A* memory_;
};

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
