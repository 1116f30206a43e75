// SPDX-License-Identifier: Apache-2.0
#include "team.h"

#include <thread>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastcnn {
namespace plan {
namespace {

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

bool Muster::lead() {
  bool all = false;
  for (int spin = 0; spin < kSpins && !all; ++spin) {
    all = joined_.load(std::memory_order_acquire) == others_;
    if (!all) pause();
  }
  verdict_.store(all ? kTogether : kAlone, std::memory_order_release);
  return all;
}

bool Muster::join() {
  joined_.fetch_add(1, std::memory_order_acq_rel);
  int verdict = kOpen;
  for (int spin = 0; (verdict = verdict_.load(std::memory_order_acquire)) == kOpen; ++spin) {
    if (spin < kSpins) pause();
    else std::this_thread::yield();
  }
  return verdict == kTogether;
}

void Barrier::wait() {
  const uint32_t phase = phase_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    return;
  }
  for (int spin = 0; phase_.load(std::memory_order_acquire) == phase; ++spin) {
    if (spin < kSpins) pause();
    else std::this_thread::yield();
  }
}

}  // namespace plan
}  // namespace fastcnn
