// SPDX-License-Identifier: Apache-2.0
// h-swish, forward and backward, over dense memory of any rank and format. Free of torch.
//
// One pass: forward reads and writes an element once, backward reads two and writes one, so the roof is DRAM bandwidth. A thread moves 16 bytes
// per access (4 float, 8 half, 2 double): a warp's request is then 512 contiguous bytes, 16 full sectors. Where a pointer is not
// 16-byte aligned a thread moves one element; the sectors are still full, the requests four to eight times as many.
#pragma once

#include "../common/epilogue.h"
#include "../common/scalar.h"
#include "launch.h"

namespace fastcnn {

constexpr int kHardSwishThreads = 256;
constexpr int kHardSwishBytes = 16;

template <typename S, int kLanes> struct alignas(sizeof(S) * kLanes) HardSwishPack {
  S lane[kLanes];
};

template <typename S> __device__ __forceinline__ S hardswish_element(S x) {
  return from_accumulator<S>(HardSwish()(to_accumulator(x)));
}

template <typename S> __device__ __forceinline__ S hardswish_slope(S grad, S x) {
  return from_accumulator<S>(to_accumulator(grad) * HardSwish().derivative(to_accumulator(x)));
}

template <typename S, int kLanes> __global__ void __launch_bounds__(kHardSwishThreads) hardswish_forward_kernel(const S* x, S* y, int64_t count) {
  using Pack = HardSwishPack<S, kLanes>;
  const int64_t first = (int64_t(blockIdx.x) * kHardSwishThreads + threadIdx.x) * kLanes;
  if (first + kLanes <= count) {
    Pack pack = *reinterpret_cast<const Pack*>(x + first);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) pack.lane[i] = hardswish_element(pack.lane[i]);
    *reinterpret_cast<Pack*>(y + first) = pack;
    return;
  }
  for (int64_t i = first; i < count; ++i) y[i] = hardswish_element(x[i]);
}

template <typename S, int kLanes>
__global__ void __launch_bounds__(kHardSwishThreads) hardswish_backward_kernel(const S* grad, const S* x, S* y, int64_t count) {
  using Pack = HardSwishPack<S, kLanes>;
  const int64_t first = (int64_t(blockIdx.x) * kHardSwishThreads + threadIdx.x) * kLanes;
  if (first + kLanes <= count) {
    const Pack grads = *reinterpret_cast<const Pack*>(grad + first);
    Pack pack = *reinterpret_cast<const Pack*>(x + first);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) pack.lane[i] = hardswish_slope(grads.lane[i], pack.lane[i]);
    *reinterpret_cast<Pack*>(y + first) = pack;
    return;
  }
  for (int64_t i = first; i < count; ++i) y[i] = hardswish_slope(grad[i], x[i]);
}

template <typename S, int kLanes> cudaError_t launch_hardswish_lanes(const S* grad, const S* x, S* y, int64_t count, cudaStream_t stream) {
  const dim3 grid = blocks_for(count, int64_t(kHardSwishThreads) * kLanes);
  if (grad == nullptr) return launch(&hardswish_forward_kernel<S, kLanes>, grid, dim3(kHardSwishThreads), 0, stream, x, y, count);
  return launch(&hardswish_backward_kernel<S, kLanes>, grid, dim3(kHardSwishThreads), 0, stream, grad, x, y, count);
}

// y = hardswish(x), or grad * hardswish'(x) when grad is given. count > 0.
template <typename S> cudaError_t launch_hardswish(const S* grad, const S* x, S* y, int64_t count, cudaStream_t stream) {
  constexpr int kLanes = kHardSwishBytes / int(sizeof(S));
  static_assert(kLanes * sizeof(S) == kHardSwishBytes, "whole elements per access");
  const bool wide = is_aligned<kHardSwishBytes>(x) && is_aligned<kHardSwishBytes>(y) && is_aligned<kHardSwishBytes>(grad);
  return wide ? launch_hardswish_lanes<S, kLanes>(grad, x, y, count, stream) : launch_hardswish_lanes<S, 1>(grad, x, y, count, stream);
}

}  // namespace fastcnn
