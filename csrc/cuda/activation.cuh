// SPDX-License-Identifier: Apache-2.0
// Elementwise activations, forward and backward, over dense memory of any rank and format. Free of torch.
//
// One pass: forward reads and writes an element once, backward reads two and writes one, so the roof is DRAM bandwidth.
// A thread moves 16 bytes per access (4 float, 8 half, 2 double): a warp's request is then 512 contiguous bytes, 16
// full sectors. Where a pointer is not 16-byte aligned a thread moves one element; the sectors are still full, the
// requests four to eight times as many.
#pragma once

#include <type_traits>

#include "epilogue.cuh"
#include "vec.cuh"

namespace fastcnn {

constexpr int kActivationThreads = 256;

// y = f(x), or grad * f'(x) where kBackward. F: a functor of common/epilogue.h, or Activation, which chooses one at run
// time. The last thread moves what is left over, element by element.
template <typename S, int kLanes, bool kBackward, typename F>
__global__ void __launch_bounds__(kActivationThreads)
    activation_kernel(F f, const S* grad, const S* x, S* y, int64_t count) {
  const int64_t first = (int64_t(blockIdx.x) * kActivationThreads + threadIdx.x) * kLanes;
  const auto move = [&](auto lanes, int64_t at, bool inside) {
    constexpr int kCount = decltype(lanes)::value;
    Accumulator<S> value[kCount];
    widen(load<kCount>(x + at, inside), value);
    if constexpr (kBackward) {
      Accumulator<S> factor[kCount];
      widen(load<kCount>(grad + at, inside), factor);
      differentiate(f, value);
#pragma unroll
      for (int i = 0; i < kCount; ++i) value[i] *= factor[i];
    } else {
      activate(f, value);
    }
    store(y + at, narrow<S>(value), inside);
  };
  move(std::integral_constant<int, kLanes>(), first, first + kLanes <= count);
  if (kLanes > 1 && first < count && first + kLanes > count)
    for (int64_t i = first; i < count; ++i) move(std::integral_constant<int, 1>(), i, true);
}

template <int kLanes, typename F, typename S>
cudaError_t launch_activation_lanes(F f, const S* grad, const S* x, S* y, int64_t count, cudaStream_t stream) {
  const dim3 grid = blocks_for(count, int64_t(kActivationThreads) * kLanes);
  const auto kernel =
      grad == nullptr ? &activation_kernel<S, kLanes, false, F> : &activation_kernel<S, kLanes, true, F>;
  return launch(kernel, grid, dim3(kActivationThreads), 0, stream, f, grad, x, y, count);
}

// y = f(x), or grad * f'(x) when grad is given. count > 0.
template <typename F, typename S>
cudaError_t launch_activation(F f, const S* grad, const S* x, S* y, int64_t count, cudaStream_t stream) {
  const bool wide = is_aligned<kVectorBytes>(x) && is_aligned<kVectorBytes>(y) && is_aligned<kVectorBytes>(grad);
  return wide ? launch_activation_lanes<kVectorLanes<S>>(f, grad, x, y, count, stream)
              : launch_activation_lanes<1>(f, grad, x, y, count, stream);
}

}  // namespace fastcnn
