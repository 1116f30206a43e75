// SPDX-License-Identifier: Apache-2.0
// h-swish, forward and backward, over dense memory of any rank and format. Free of torch.
//
// One pass: forward reads and writes an element once, backward reads two and writes one, so the roof is DRAM bandwidth.
// A thread moves 16 bytes per access (4 float, 8 half, 2 double): a warp's request is then 512 contiguous bytes, 16
// full sectors. Where a pointer is not 16-byte aligned a thread moves one element; the sectors are still full, the
// requests four to eight times as many.
#pragma once

#include "../common/epilogue.h"
#include "vec.cuh"

namespace fastcnn {

constexpr int kHardSwishThreads = 256;

// y = hardswish(x), or grad * hardswish'(x) where kBackward. The last thread moves what is left over, element by
// element.
template <typename S, int kLanes, bool kBackward>
__global__ void __launch_bounds__(kHardSwishThreads) hardswish_kernel(const S* grad, const S* x, S* y, int64_t count) {
  const int64_t first = (int64_t(blockIdx.x) * kHardSwishThreads + threadIdx.x) * kLanes;
  const auto move = [&](auto lanes, int64_t at, bool inside) {
    constexpr int kCount = decltype(lanes)::value;
    Accumulator<S> value[kCount], slope[kCount];
    widen(load<kCount>(x + at, inside), value);
    if constexpr (kBackward) widen(load<kCount>(grad + at, inside), slope);
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      value[i] = kBackward ? slope[i] * HardSwish().derivative(value[i]) : HardSwish()(value[i]);
    store(y + at, narrow<S>(value), inside);
  };
  move(std::integral_constant<int, kLanes>(), first, first + kLanes <= count);
  if (kLanes > 1 && first < count && first + kLanes > count)
    for (int64_t i = first; i < count; ++i) move(std::integral_constant<int, 1>(), i, true);
}

template <typename S, int kLanes>
cudaError_t launch_hardswish_lanes(const S* grad, const S* x, S* y, int64_t count, cudaStream_t stream) {
  const dim3 grid = blocks_for(count, int64_t(kHardSwishThreads) * kLanes);
  const auto kernel = grad == nullptr ? &hardswish_kernel<S, kLanes, false> : &hardswish_kernel<S, kLanes, true>;
  return launch(kernel, grid, dim3(kHardSwishThreads), 0, stream, grad, x, y, count);
}

// y = hardswish(x), or grad * hardswish'(x) when grad is given. count > 0.
template <typename S>
cudaError_t launch_hardswish(const S* grad, const S* x, S* y, int64_t count, cudaStream_t stream) {
  const bool wide = is_aligned<kVectorBytes>(x) && is_aligned<kVectorBytes>(y) && is_aligned<kVectorBytes>(grad);
  return wide ? launch_hardswish_lanes<S, kVectorLanes<S>>(grad, x, y, count, stream)
              : launch_hardswish_lanes<S, 1>(grad, x, y, count, stream);
}

}  // namespace fastcnn
