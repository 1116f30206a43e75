// SPDX-License-Identifier: Apache-2.0
// The two small layers of squeeze-and-excitation on [N, K] and [M, K] matrices of the accumulator type, and their gradients. A weight row is
// read once for kSamples samples; rows are shared out to threads, so every sum runs in one thread, in one order.
#pragma once

#include "../common/dispatch.h"
#include "lanes.h"
#include "parallel.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {

constexpr int kSamples = 4;
constexpr int64_t kLinearGrain = 65536;  // multiply-adds that are worth a thread

template <typename A> FASTCNN_INLINE void activate(Activation kind, const A* x, A* y, int64_t count) {
  dispatch_activation(kind, [&](auto functor) {
    over_lanes<Vec<A>>(count, [&](int64_t i, auto lanes) { lanes.store(functor(lanes.load(x + i)), y + i); });
  });
}

// grad *= act'(z)
template <typename A> FASTCNN_INLINE void activate_backward(Activation kind, const A* z, A* grad, int64_t count) {
  dispatch_activation(kind, [&](auto functor) {
    over_lanes<Vec<A>>(count, [&](int64_t i, auto lanes) { lanes.store(lanes.load(grad + i) * functor.derivative(lanes.load(z + i)), grad + i); });
  });
}

template <int kRows, typename A> FASTCNN_INLINE void dot_rows(const A* x, int64_t stride, const A* weight, int64_t K, A bias, A* y, int64_t step) {
  using V = Vec<A>;
  V sum[kRows];
  over_lanes<V>(K, [&](int64_t k, auto lanes) {
    const V w = lanes.load(weight + k);
    for (int r = 0; r < kRows; ++r) sum[r] = fma(lanes.load(x + r * stride + k), w, sum[r]);
  });
  for (int r = 0; r < kRows; ++r) y[r * step] = sum[r].sum() + bias;
}

// y[n, m] = x[n, :] . weight[m, :] + bias[m]
template <typename A> FASTCNN_INLINE void linear(const A* x, const A* weight, const A* bias, A* y, int64_t N, int64_t M, int64_t K) {
  parallel_for(M, ceil_div(kLinearGrain, N * K > 0 ? N * K : 1), [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      int64_t n = 0;
      for (; n + kSamples <= N; n += kSamples) dot_rows<kSamples>(x + n * K, K, weight + m * K, K, bias[m], y + n * M + m, M);
      for (; n < N; ++n) dot_rows<1>(x + n * K, K, weight + m * K, K, bias[m], y + n * M + m, M);
    }
  });
}

// grad_x[n, :] = sum over m of grad[n, m] * weight[m, :], times factor
template <typename A>
FASTCNN_INLINE void linear_backward_input(const A* grad, const A* weight, A* grad_x, int64_t N, int64_t M, int64_t K, A factor) {
  using V = Vec<A>;
  constexpr int64_t kColumns = 4 * V::kLanes;  // columns whose sums stay in registers
  const int64_t blocks = ceil_div(K, kColumns);
  parallel_for(N * blocks, ceil_div(kLinearGrain, M * kColumns > 0 ? M * kColumns : 1), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item / blocks, first = (item - n * blocks) * kColumns;
      const A* g = grad + n * M;
      A* out = grad_x + n * K + first;
      if (first + kColumns <= K) {
        V sum[4];
        for (int64_t m = 0; m < M; ++m)
          for (int j = 0; j < 4; ++j) sum[j] = fma(V(g[m]), V::load(weight + m * K + first + j * V::kLanes), sum[j]);
        for (int j = 0; j < 4; ++j) (sum[j] * V(factor)).store(out + j * V::kLanes);
      } else {
        over_lanes<V>(K - first, [&](int64_t k, auto lanes) {
          V sum;
          for (int64_t m = 0; m < M; ++m) sum = fma(V(g[m]), lanes.load(weight + m * K + first + k), sum);
          lanes.store(sum * V(factor), out + k);
        });
      }
    }
  });
}

// grad_weight[m, :] = sum over n of grad[n, m] * x[n, :], grad_bias[m] = sum over n of grad[n, m]
template <typename A>
FASTCNN_INLINE void linear_backward_weight(const A* grad, const A* x, A* grad_weight, A* grad_bias, int64_t N, int64_t M, int64_t K) {
  using V = Vec<A>;
  parallel_for(M, ceil_div(kLinearGrain, N * K > 0 ? N * K : 1), [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      A total = 0;
      for (int64_t n = 0; n < N; ++n) total += grad[n * M + m];
      grad_bias[m] = total;
      over_lanes<V>(K, [&](int64_t k, auto lanes) {
        V sum;
        for (int64_t n = 0; n < N; ++n) sum = fma(V(grad[n * M + m]), lanes.load(x + n * K + k), sum);
        lanes.store(sum, grad_weight + m * K + k);
      });
    }
  });
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
