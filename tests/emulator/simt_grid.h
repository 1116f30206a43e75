// SPDX-License-Identifier: Apache-2.0
// A grid, block after block: which thread runs next, who waits for whom, shared memory. Wrong synchronisation becomes
// an Error with its line.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "simt_fiber.h"

namespace simt {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;
constexpr size_t kGuard = 256;  // bytes on both sides of dynamic shared memory

enum class Order : int { kForward, kBackward, kShuffled };
enum class Wait { kNothing, kBlock, kWarp, kFinished };

struct Site {
  const char* file = "";
  int line = 0;
  bool operator==(const Site& other) const { return line == other.line && std::strcmp(file, other.file) == 0; }
  std::string text() const { return std::string(file) + ":" + std::to_string(line); }
};

struct Thread {
  Fiber fiber;
  uint3 index{};
  Wait wait = Wait::kNothing;
  uint32_t mask = 0;  // the lanes it waits for
  int phase = 0;      // a shuffle waits twice at one line
  Site site;
  uint64_t lane_value = 0;
};

struct Grid {
  std::vector<std::unique_ptr<Thread>> threads;
  int count = 0;    // threads of a block
  int current = 0;  // the running one
  uint3 block{};
  dim3 block_size, grid_size;
  uint64_t block_number = 0;
  uint64_t first_block = 0;  // number of the launch's first block: no two launches have a block in common
  const std::function<void()>* body = nullptr;
  unsigned char* dynamic_shared = nullptr;
  std::exception_ptr failure;
  Order order = Order::kForward;
  uint64_t seed = 0;
};

inline Grid& grid() {
  static Grid instance;
  return instance;
}
inline Thread& running() { return *grid().threads[grid().current]; }

// Every __shared__ variable of the module lies in this section; the linker provides its bounds.
extern "C" unsigned char __start_fastcnn_shared[] __attribute__((weak));
extern "C" unsigned char __stop_fastcnn_shared[] __attribute__((weak));

// 0xff: a NaN in every floating type. Red zones between the variables are overwritten too, which only the
// uninstrumented code may do.
__attribute__((noinline, no_sanitize("address"))) inline void poison(unsigned char* begin, unsigned char* end) {
  for (volatile unsigned char* p = begin; p != end; ++p) *p = 0xff;
}

inline std::string name_of(int thread) {
  return "thread " + std::to_string(thread) + " at " + grid().threads[thread]->site.text();
}

inline void run_threads() {
  running().fiber.arrived();
  for (;;) {  // a fiber whose thread has ended serves the next block
    try {
      (*grid().body)();
    } catch (...) {
      grid().failure = std::current_exception();
    }
    running().wait = Wait::kFinished;
    running().fiber.leave();
  }
}

inline void wait_for(Wait what, uint32_t mask, int phase, Site site) {
  Thread& thread = running();
  thread.wait = what, thread.mask = mask, thread.phase = phase, thread.site = site;
  thread.fiber.leave();
}

// Whether every lane that this one names waits at the same place for the same lanes.
inline bool warp_is_complete(int thread) {
  const Grid& g = grid();
  const Thread& mine = *g.threads[thread];
  const int first = thread / kWarp * kWarp;
  if (!(mine.mask >> (thread - first) & 1u))
    throw Error("a lane waits with a mask that leaves it out: " + name_of(thread));
  bool complete = true;
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!(mine.mask >> lane & 1u)) continue;
    const int other = first + lane;
    if (other >= g.count || g.threads[other]->wait == Wait::kFinished)
      throw Error("the mask names lane " + std::to_string(lane) +
                  ", which has exited or does not exist: " + name_of(thread));
    const Thread& theirs = *g.threads[other];
    complete &= theirs.wait == Wait::kWarp && theirs.mask == mine.mask && theirs.phase == mine.phase &&
                theirs.site == mine.site;
  }
  return complete;
}

// The threads that may go on now that all have run as far as they could; none when the block has ended.
inline std::vector<int> released() {
  Grid& g = grid();
  std::vector<int> ready;
  int at_barrier = 0, finished = 0, first = -1;
  for (int i = 0; i < g.count; ++i) {
    const Wait wait = g.threads[i]->wait;
    finished += wait == Wait::kFinished;
    at_barrier += wait == Wait::kBlock;
    if (wait == Wait::kBlock && first < 0) first = i;
    if (wait == Wait::kWarp && warp_is_complete(i)) ready.push_back(i);
  }
  for (const int i : ready) g.threads[i]->wait = Wait::kNothing;
  if (!ready.empty() || finished == g.count) return ready;
  if (at_barrier + finished < g.count) {
    for (int i = 0; i < g.count; ++i)
      if (g.threads[i]->wait == Wait::kWarp) throw Error("deadlock: not every lane of the mask arrives: " + name_of(i));
  }
  if (finished > 0)
    throw Error("__syncthreads is not reached by " + std::to_string(finished) + " exited threads: " + name_of(first));
  for (int i = 0; i < g.count; ++i) {
    if (!(g.threads[i]->site == g.threads[first]->site))
      throw Error("__syncthreads is reached at different places: " + name_of(first) + " and " + name_of(i));
    g.threads[i]->wait = Wait::kNothing;
    ready.push_back(i);
  }
  return ready;
}

template <typename Index> void arrange(std::vector<Index>& list, std::mt19937_64& random) {
  if (grid().order == Order::kBackward) std::reverse(list.begin(), list.end());
  if (grid().order == Order::kShuffled) std::shuffle(list.begin(), list.end(), random);
}

inline void run_block(std::mt19937_64& random) {
  Grid& g = grid();
  std::vector<int> ready(size_t(g.count));
  std::iota(ready.begin(), ready.end(), 0);
  for (int i = 0; i < g.count; ++i) {
    Thread& thread = *g.threads[i];
    thread.index =
        make_uint3(i % g.block_size.x, i / g.block_size.x % g.block_size.y, i / (g.block_size.x * g.block_size.y));
    thread.wait = Wait::kNothing;
  }
  while (!ready.empty()) {
    std::sort(ready.begin(), ready.end());
    arrange(ready, random);
    for (const int i : ready) {
      g.current = i;
      g.threads[i]->fiber.enter(&run_threads);
      if (g.failure) std::rethrow_exception(g.failure);
    }
    ready = released();
  }
}

inline void check_guard(const unsigned char* begin, const char* side) {
  for (size_t i = 0; i < kGuard; ++i)
    if (begin[i] != 0xa5) throw Error(std::string("dynamic shared memory is written ") + side + " its bounds");
}

inline void run_grid(const std::function<void()>& body, dim3 grid_size, dim3 block_size, size_t shared_bytes) {
  Grid& g = grid();
  g.body = &body, g.grid_size = grid_size, g.block_size = block_size;
  g.count = int(block_size.x * block_size.y * block_size.z);
  while (int(g.threads.size()) < g.count) g.threads.push_back(std::make_unique<Thread>());
  std::vector<uint64_t> blocks(size_t(grid_size.x) * grid_size.y * grid_size.z);
  std::iota(blocks.begin(), blocks.end(), uint64_t(0));
  std::mt19937_64 random(g.seed);
  arrange(blocks, random);
  try {
    for (const uint64_t block : blocks) {
      g.block_number = g.first_block + block;
      g.block = make_uint3(unsigned(block % grid_size.x), unsigned(block / grid_size.x % grid_size.y),
                           unsigned(block / grid_size.x / grid_size.y));
#if defined(__SANITIZE_ADDRESS__)
      // exactly as many bytes as asked for, so that the sanitizer sees the first one behind them
      const std::unique_ptr<unsigned char[]> memory(new unsigned char[shared_bytes]);
      g.dynamic_shared = memory.get();
      std::memset(g.dynamic_shared, 0xff, shared_bytes);
#else
      const std::unique_ptr<uint4[]> memory(new uint4[(shared_bytes + 2 * kGuard) / sizeof(uint4) + 1]);
      unsigned char* whole = reinterpret_cast<unsigned char*>(memory.get());
      g.dynamic_shared = whole + kGuard;
      std::memset(whole, 0xa5, shared_bytes + 2 * kGuard);
      std::memset(g.dynamic_shared, 0xff, shared_bytes);
#endif
      poison(__start_fastcnn_shared, __stop_fastcnn_shared);
      run_block(random);
#if !defined(__SANITIZE_ADDRESS__)
      check_guard(whole, "before");
      check_guard(whole + kGuard + shared_bytes, "behind");
#endif
    }
    g.first_block += blocks.size();
  } catch (...) {
    g.failure = nullptr;
    for (const auto& thread : g.threads) thread->fiber.discard();
    throw;
  }
}

}  // namespace simt
