// SPDX-License-Identifier: Apache-2.0
// Two ways to share the work. Where the batch has an image for every thread, each thread takes whole images through the
// network on its own, a group at a time as it gets to them: no barrier, and maps that stay in its cache whatever the batch.
// What the threads cannot share out so (all of it when there are fewer images than threads) goes before, step by step: every
// step is shared by all threads, with a barrier behind it.
#include "run.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <string>

#include "../isa.h"
#include "../parallel.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastcnn {
namespace plan {
namespace {

// Memory of finished calls, for the next: fresh pages would cost more than the arithmetic on them. Every call that runs at
// the same time takes a block of its own.
class Blocks {
 public:
  struct Block {
    float* memory = nullptr;
    int64_t floats = 0;
  };

  Block take(int64_t floats) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      auto best = free_.end();
      for (auto it = free_.begin(); it != free_.end(); ++it)
        if (it->floats >= floats && (best == free_.end() || it->floats < best->floats)) best = it;
      if (best != free_.end()) {
        const Block found = *best;
        free_.erase(best);
        return found;
      }
    }
    return allocate(floats);
  }

  void give_back(Block block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_.size() == kKept) {
      auto smallest = std::min_element(free_.begin(), free_.end(), [](const Block& a, const Block& b) { return a.floats < b.floats; });
      if (smallest->floats < block.floats) std::swap(*smallest, block);
      std::free(block.memory);
      return;
    }
    free_.push_back(block);
  }

 private:
  static constexpr size_t kKept = 4;
  static constexpr size_t kPage = 2 << 20;  // a huge page

  static Block allocate(int64_t floats) {
    const size_t bytes = (size_t(floats) * sizeof(float) / kPage + 1) * kPage;
    void* memory = std::aligned_alloc(kPage, bytes);
    if (memory == nullptr) throw std::runtime_error("fastcnn: run_plan: no memory for " + std::to_string(bytes) + " bytes of activations");
#if defined(__linux__)
    madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    return {static_cast<float*>(memory), int64_t(bytes / sizeof(float))};
  }

  std::mutex mutex_;
  std::vector<Block> free_;
};

Blocks& blocks() {
  static Blocks* kept = new Blocks;  // never destroyed: a thread may still run at exit
  return *kept;
}

class Held {
 public:
  explicit Held(int64_t floats) : block_(blocks().take(floats)) {}
  ~Held() { blocks().give_back(block_); }
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;
  float* memory() const { return block_.memory; }

 private:
  Blocks::Block block_;
};

// Images [first, first + images) of the batch, which are those from `inside` on of a group.
struct Images {
  int64_t first, images, inside, group;
};

struct Memory {
  float *arena, *kept, *scratch, *shared;
};

Map resolve(const Value& v, const std::vector<External>& inputs, const std::vector<External>& outputs, const Memory& memory,
            const Images& of) {
  const int64_t image = v.H * v.W * v.pixel;
  if (v.place == Place::kArena || v.place == Place::kKept) {
    float* data = v.place == Place::kArena ? memory.arena + v.buffer * of.images : memory.kept + v.buffer * of.group + of.inside * image;
    return {data + v.channel, of.images, v.H, v.W, v.C, image, v.W * v.pixel, v.pixel, 1};
  }
  const External& e = (v.place == Place::kOutput ? outputs : inputs)[size_t(v.index)];
  return {e.data + of.first * e.image + v.channel * e.channel, of.images, v.H, v.W, v.C, e.image, e.row, e.pixel, e.channel};
}

struct Need {
  int64_t scratch = 0, shared = 0;
};

class Run {
 public:
  Run(const Program& program, const std::vector<External>& inputs, const std::vector<External>& outputs, const float* weights,
      int64_t images, double* seconds)
      : program_(program), inputs_(inputs), outputs_(outputs), weights_(weights), images_(images), seconds_(seconds),
        kernels_(active_kernels()) {}

  void operator()() {
    const Header& header = *program_.header;
    const int threads = int(std::max<int64_t>(1, thread_count()));
    const int64_t each = images_ / threads, left = images_ - each * threads;
    // rounds of equal size; a thread that another process holds up takes fewer of them
    const int64_t group = each > 0 ? ceil_div(each, ceil_div(each, header.group)) : 0;
    std::atomic<int64_t> next{0};
    const Need alone = each > 0 ? most(need(0, header.early, 1, 1), need(header.early, header.steps, group, 1)) : Need{};
    const Need together = left > 0 ? most(need(0, header.steps, left, threads), need(0, header.steps, left, 1)) : Need{};
    // every thread: arena of an image, kept memory of a group, scratch; then the team's
    const int64_t scratch = aligned(std::max(alone.scratch, together.scratch));
    const int64_t own = (each > 0 ? header.arena : 0) + group * header.kept + aligned(alone.shared) + scratch;
    const int64_t common = left * (header.arena + header.kept) + aligned(together.shared);
    const Held held(own * threads + common);
    Barrier barrier(threads);
    Muster muster(threads);
    parallel_for(threads, 1, [&](int64_t begin, int64_t end) {
      const auto cut = [&](int64_t rank) {
        float* at = held.memory() + rank * own;
        float* kept = at + scratch + (each > 0 ? header.arena : 0);
        return Memory{at + scratch, kept, at, kept + group * header.kept};
      };
      if (left > 0) {  // first: all threads are there now, and not when each ends its own images
        std::vector<double> took(seconds_ == nullptr || begin != 0 ? 0 : program_.steps.size());
        double* seconds = took.empty() ? nullptr : took.data();
        float* shared = held.memory() + threads * own;
        const Memory memory{shared, shared + left * header.arena, cut(begin).scratch, shared + left * (header.arena + header.kept)};
        const Images rest{threads * each, left, 0, left};
        const bool whole = end - begin == threads;  // this thread has to do all ranks' work
        if (whole || (begin == 0 && !muster.lead())) steps(0, header.steps, rest, memory, Team{}, seconds);
        else if (begin == 0 || muster.join()) steps(0, header.steps, rest, memory, Team{int(begin), threads, &barrier}, seconds);
        add_seconds(took, 1);
      }
      if (each > 0) {
        std::vector<double> took(seconds_ == nullptr ? 0 : program_.steps.size());
        double* seconds = took.empty() ? nullptr : took.data();
        for (int64_t first; (first = next.fetch_add(group, std::memory_order_relaxed)) < threads * each;)
          alone_through(first, std::min(group, threads * each - first), cut(begin), seconds);
        add_seconds(took, threads);
      }
    });
  }

 private:
  void add_seconds(const std::vector<double>& took, int shares) {
    if (took.empty()) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = 0; i < took.size(); ++i) seconds_[i] += took[i] / shares;
  }

  std::vector<Map> maps(const Images& of, const Memory& memory) const {
    std::vector<Map> found(size_t(program_.header->values));
    for (size_t i = 0; i < found.size(); ++i) found[i] = resolve(program_.values[i], inputs_, outputs_, memory, of);
    return found;
  }

  static Need most(const Need& a, const Need& b) { return {std::max(a.scratch, b.scratch), std::max(a.shared, b.shared)}; }

  Need need(int64_t begin, int64_t end, int64_t images, int threads) const {
    const std::vector<Map> shapes = maps({0, images, 0, images}, {});
    Need found;
    for (int64_t i = begin; i < end; ++i) {
      const Call call{program_.steps[size_t(i)], shapes.data(), weights_, nullptr, nullptr, Team{0, threads, nullptr}};
      const Kernel& kernel = kernels_.of[int(call.step.op)];
      found = most(found, {kernel.scratch(call), kernel.shared(call)});
    }
    return found;
  }

  void alone_through(int64_t first, int64_t images, const Memory& memory, double* seconds) const {
    const Header& header = *program_.header;
    for (int64_t i = 0; i < images; ++i) steps(0, header.early, {first + i, 1, i, images}, memory, Team{}, seconds);
    steps(header.early, header.steps, {first, images, 0, images}, memory, Team{}, seconds);
  }

  void steps(int64_t begin, int64_t end, const Images& of, const Memory& memory, const Team& team, double* seconds) const {
    using Clock = std::chrono::steady_clock;
    const std::vector<Map> resolved = maps(of, memory);
    Clock::time_point before = seconds ? Clock::now() : Clock::time_point();
    for (int64_t i = begin; i < end; ++i) {
      const Step& step = program_.steps[size_t(i)];
      kernels_.of[int(step.op)].run({step, resolved.data(), weights_, memory.scratch, memory.shared, team});
      team.wait();
      if (seconds == nullptr) continue;
      const Clock::time_point now = Clock::now();
      seconds[i] += std::chrono::duration<double>(now - before).count();
      before = now;
    }
  }

  const Program& program_;
  const std::vector<External>&inputs_, &outputs_;
  const float* weights_;
  const int64_t images_;
  double* seconds_;
  std::mutex mutex_;  // of the seconds
  const Kernels& kernels_;
};

}  // namespace

const Kernels& active_kernels() {
#if FASTCNN_BUILD_X86
  switch (active_isa()) {
    case Isa::kAvx512: return avx512::plan_kernels();
    case Isa::kAvx2: return avx2::plan_kernels();
    case Isa::kPlain: break;
  }
#endif
  return plain::plan_kernels();
}

void run(const Program& program, const std::vector<External>& inputs, const std::vector<External>& outputs, const float* weights,
         int64_t images, double* seconds) {
  if (images == 0) return;
  if (program.header->arena + program.header->kept > kMostFloats / images)  // their product must not overflow
    throw std::runtime_error("fastcnn: run_plan: no memory for the activations of " + std::to_string(images) + " images");
  Run(program, inputs, outputs, weights, images, seconds)();
}

}  // namespace plan
}  // namespace fastcnn
