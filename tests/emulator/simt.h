// SPDX-License-Identifier: Apache-2.0
// CUDA kernels as host C++: what nvcc gives a kernel file, on fibers. csrc/cuda/launch.h includes it under
// FASTCNN_EMULATOR, and nothing else of a kernel file knows of it. One module is one translation unit; one grid runs at
// a time, on the calling OS thread.
//
// Reported as simt::Error, with the line: threads that miss a barrier or meet at different ones, shuffles whose mask
// names absent lanes, vector accesses through vec.cuh that are not aligned, writes beyond dynamic shared memory. Shared
// memory, dynamic and static, is filled with NaN before each block, so that a value from an earlier block never looks
// right. A missing barrier shows in the result of at least one of the three thread orders. Not seen: races within one
// order, anything that holds only on a device (registers, occupancy, memory model).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <cuda_runtime.h>  // the host's part: dim3, vector types, error codes
// after the standard headers and the toolkit's: both know some of these names
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "simt_grid.h"
#include "simt_traffic.h"

#undef __global__
#undef __shared__
#undef __constant__
#undef __launch_bounds__
#define __global__ static  // a COMDAT function's statics can neither be put into a section nor get red zones
#define __shared__ static __attribute__((section("fastcnn_shared")))
#define __constant__ static
#define __launch_bounds__(...)
#define threadIdx (::simt::running().index)
#define blockIdx (::simt::grid().block)
#define blockDim (::simt::grid().block_size)
#define gridDim (::simt::grid().grid_size)
#define FASTCNN_SITE const char *file_ = __builtin_FILE(), int line_ = __builtin_LINE()

constexpr int warpSize = simt::kWarp;

inline void __syncthreads(FASTCNN_SITE) { simt::wait_for(simt::Wait::kBlock, 0, 0, {file_, line_}); }
inline void __syncwarp(unsigned mask = 0xffffffffu, FASTCNN_SITE) {
  simt::wait_for(simt::Wait::kWarp, mask, 0, {file_, line_});
}
inline void __threadfence() {}

namespace simt {

// Every lane of the mask shows its value and takes that of lane source(own lane).
template <typename T, typename Source> T exchange(uint32_t mask, T value, Source source, Site site) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "at most 8 bytes a lane");
  const int lane = grid().current % kWarp, first = grid().current - lane;
  std::memcpy(&running().lane_value, &value, sizeof value);
  wait_for(Wait::kWarp, mask, 0, site);
  const int from = source(lane);
  if (!(mask >> from & 1u))
    throw Error("a shuffle reads lane " + std::to_string(from) + ", which its mask leaves out, at " + site.text());
  std::memcpy(&value, &grid().threads[first + from]->lane_value, sizeof value);
  wait_for(Wait::kWarp, mask, 1, site);
  return value;
}

}  // namespace simt

template <typename T> T __shfl_sync(unsigned mask, T value, int lane, int width = simt::kWarp, FASTCNN_SITE) {
  return simt::exchange(mask, value, [=](int own) { return own / width * width + lane % width; }, {file_, line_});
}
template <typename T> T __shfl_xor_sync(unsigned mask, T value, int bits, int width = simt::kWarp, FASTCNN_SITE) {
  return simt::exchange(mask, value, [=](int own) { return (own ^ bits) / width == own / width ? own ^ bits : own; },
                        {file_, line_});
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = simt::kWarp, FASTCNN_SITE) {
  return simt::exchange(mask, value, [=](int own) { return own % width + int(delta) < width ? own + int(delta) : own; },
                        {file_, line_});
}
template <typename T> T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = simt::kWarp, FASTCNN_SITE) {
  return simt::exchange(mask, value, [=](int own) { return own % width >= int(delta) ? own - int(delta) : own; },
                        {file_, line_});
}
inline unsigned __ballot_sync(unsigned mask, int predicate, FASTCNN_SITE) {
  simt::Grid& g = simt::grid();
  const int first = g.current / simt::kWarp * simt::kWarp;
  simt::running().lane_value = predicate != 0;
  simt::wait_for(simt::Wait::kWarp, mask, 0, {file_, line_});
  unsigned votes = 0;
  for (int lane = 0; lane < simt::kWarp; ++lane)
    if (mask >> lane & 1u) votes |= unsigned(g.threads[first + lane]->lane_value) << lane;
  simt::wait_for(simt::Wait::kWarp, mask, 1, {file_, line_});
  return votes;
}
inline int __any_sync(unsigned mask, int predicate, FASTCNN_SITE) {
  return __ballot_sync(mask, predicate, file_, line_) != 0;
}
inline int __all_sync(unsigned mask, int predicate, FASTCNN_SITE) {
  return __ballot_sync(mask, predicate, file_, line_) == mask;
}

// One OS thread: each is indivisible as it stands.
template <typename T> T atomicAdd(T* address, T value) { return std::exchange(*address, T(*address + value)); }
template <typename T> T __ldg(const T* address) { return *address; }

using std::max;
using std::min;
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float x, float y) { return x / y; }

namespace fastcnn {

template <typename T> T* dynamic_shared() { return reinterpret_cast<T*>(simt::grid().dynamic_shared); }

// That of the least device, Turing's: what fits here fits everywhere.
constexpr int64_t most_shared() { return 64 << 10; }

// What a device would refuse comes back as an error code, what it would get wrong is thrown.
template <typename... Parameters, typename... Arguments>
[[nodiscard]] cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                                 cudaStream_t, Arguments... arguments) {
  constexpr unsigned kLimitX = 0x7fffffffu, kLimitYZ = 65535u;
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > kLimitX || grid.y > kLimitYZ || grid.z > kLimitYZ ||
      threads == 0 || threads > simt::kMaxThreads)
    return cudaErrorInvalidConfiguration;
  if (shared_bytes > size_t(most_shared())) return cudaErrorInvalidValue;
  simt::run_grid([&] { kernel(static_cast<Parameters>(arguments)...); }, grid, block, shared_bytes);
  return cudaSuccess;
}

}  // namespace fastcnn
