// SPDX-License-Identifier: Apache-2.0
// Max pooling and its gradient, without an index: the backward compares again. Free of torch.
//
// A thread owns kLanes channels (16 bytes) of one column and walks down `rows` pixels of it, of y forward and of grad_x
// backward; neighbouring threads own neighbouring channels, then columns. NCHW is the same with planes for images of
// one channel: one element an access, neighbouring threads in a row.
// All taps of a 3x3 window are under way at once, of any other four, two backward.
// Forward: requested x kH kW / (stride_h stride_w) times, 2.25x for 3x3 at stride 2. L1 serves the overlap between
// columns and between the rows of a thread and leaves 1 + (kH - stride_h) / (rows stride_h), 1.13x at four rows.
// Backward: each pixel gathers from the windows over it, in their order, without atomics. It is a window's choice when
// no pixel before it is as large and none behind it larger. Requested: x 1 + (kH kW)^2 / (stride_h stride_w) times, 21x
// for 3x3 at stride 2, and grad kH kW times, from L1 but for the first; DRAM is asked once for either.
// PyTorch's rule decides ties: the first maximum in row order, or the last NaN.
#pragma once

#include <cmath>
#include <type_traits>

#include "../common/shape.h"
#include "vec.cuh"

namespace fastcnn {

constexpr int kMaxPoolThreads = 256;
constexpr int kMaxPoolTaps = 4;               // loads under way where the window is not known to the compiler
constexpr int kMaxPoolBackwardTaps = 2;
// Blocks on a multiprocessor: left to itself, ptxas 13.0 spills for the sake of more.
constexpr int kMaxPoolBlocks = 3, kMaxPoolBackwardBlocks = 2;
constexpr int64_t kMaxPoolMostRows = 4;       // pixels of a thread
constexpr int64_t kMaxPoolFull = 132 * 2048;  // threads that fill an H100: with fewer left, each has fewer pixels

// Of y forward, of grad_x backward: `strips` of `rows` pixels in a column, `units` vectors in a pixel. Sizes of a
// plane, a window and a stride are below 2^30, so that every sum of two of them fits in int.
struct MaxPoolPlan {
  int64_t N, C, units, strips;
  int H, W, Ho, Wo, kH, kW, stride_h, stride_w, pad_top, pad_left, rows;
};

struct MaxPoolThread {
  int64_t c, n;
  int column, row;
  bool live;

  __device__ __forceinline__ MaxPoolThread(const MaxPoolPlan& p, int columns, int lanes) {
    int64_t rest = int64_t(blockIdx.x) * kMaxPoolThreads + threadIdx.x;
    c = rest % p.units * lanes, rest /= p.units;
    column = int(rest % columns), rest /= columns;
    row = int(rest % p.strips) * p.rows, n = rest / p.strips;
    live = n < p.N;
  }
};

// Calls take(t, v, inside) for the taps t of the window at (h0, w0) of an image. Under way at once are all of a window
// that the compiler knows, of another kTaps in a row of it.
template <int kLanes, int kKernel, int kTaps, typename S, typename Take>
__device__ __forceinline__ void over_taps(const S* image, const MaxPoolPlan& p, int h0, int w0, bool wanted,
                                          Take take) {
  constexpr bool kKnown = kKernel > 0;
  constexpr int kSide = kKnown ? kKernel : 1, kBatch = kKnown ? kSide * kSide : kTaps;
  const int rows = kKnown ? 1 : p.kH, columns = kKnown ? 1 : p.kW;
#pragma unroll 1
  for (int i = 0; i < rows; ++i) {
#pragma unroll 1
    for (int j = 0; j < columns; j += kBatch) {
      Vec<S, kLanes> v[kBatch];
      bool inside[kBatch];
#pragma unroll
      for (int k = 0; k < kBatch; ++k) {
        const int h = h0 + (kKnown ? k / kSide : i), w = w0 + (kKnown ? k % kSide : j + k);
        inside[k] = wanted && (kKnown || j + k < p.kW) && h >= 0 && h < p.H && w >= 0 && w < p.W;
        v[k] = load<kLanes>(image + (int64_t(h) * p.W + w) * p.C, inside[k]);
      }
#pragma unroll
      for (int k = 0; k < kBatch; ++k) take(kKnown ? k : i * p.kW + j + k, v[k], inside[k]);
    }
  }
}

template <typename S, int kLanes, int kKernel>
__global__ void __launch_bounds__(kMaxPoolThreads, kMaxPoolBlocks)
    max_pool2d_forward_kernel(const S* x, S* y, MaxPoolPlan p) {
  using A = Accumulator<S>;
  const MaxPoolThread t(p, p.Wo, kLanes);
  const S* image = x + t.n * p.H * p.W * p.C + t.c;
#pragma unroll 1
  for (int oh = t.row; oh < t.row + p.rows; ++oh) {
    const bool wanted = t.live && oh < p.Ho;
    A best[kLanes];
#pragma unroll
    for (int e = 0; e < kLanes; ++e) best[e] = -A(INFINITY);
    const auto take = [&](int, const Vec<S, kLanes>& v, bool inside) {
      A value[kLanes];
      widen(v, value);
#pragma unroll
      for (int e = 0; e < kLanes; ++e)
        if (inside && !(value[e] <= best[e]) && best[e] == best[e]) best[e] = value[e];
    };
    over_taps<kLanes, kKernel, kMaxPoolTaps>(image, p, oh * p.stride_h - p.pad_top,
                                             t.column * p.stride_w - p.pad_left, wanted, take);
    store(y + ((t.n * p.Ho + oh) * p.Wo + t.column) * p.C + t.c, narrow<S>(best), wanted);
  }
}

template <typename S, int kLanes, int kKernel>
__global__ void __launch_bounds__(kMaxPoolThreads, kMaxPoolBackwardBlocks)
    max_pool2d_backward_kernel(const S* grad, const S* x, S* grad_x, MaxPoolPlan p) {
  using A = Accumulator<S>;
  const MaxPoolThread t(p, p.W, kLanes);
  const S* image = x + t.n * p.H * p.W * p.C + t.c;
  const int down = (p.kH - 1) / p.stride_h, across = (p.kW - 1) / p.stride_w;  // windows over a pixel, but one
  const int last_w = (t.column + p.pad_left) / p.stride_w;
#pragma unroll 1
  for (int h = t.row; h < t.row + p.rows; ++h) {
    const bool wanted = t.live && h < p.H;
    const int last_h = (h + p.pad_top) / p.stride_h;
    A mine[kLanes], sum[kLanes] = {};
    widen(load<kLanes>(image + (int64_t(h) * p.W + t.column) * p.C, wanted), mine);
#pragma unroll 1
    for (int oh = last_h - down; oh <= last_h; ++oh) {
#pragma unroll 1
      for (int ow = last_w - across; ow <= last_w; ++ow) {
        const int h0 = oh * p.stride_h - p.pad_top, w0 = ow * p.stride_w - p.pad_left;
        const bool over = wanted && oh >= 0 && oh < p.Ho && ow >= 0 && ow < p.Wo && h < h0 + p.kH &&
                          t.column < w0 + p.kW;
        const int own = (h - h0) * p.kW + t.column - w0;
        unsigned chosen = over ? ~0u : 0u;
        const auto take = [&](int tap, const Vec<S, kLanes>& v, bool inside) {
          A value[kLanes];
          widen(v, value);
#pragma unroll
          for (int e = 0; e < kLanes; ++e) {
            const bool nan = mine[e] != mine[e];
            const bool yields =
                tap < own ? value[e] < mine[e] || nan : value[e] <= mine[e] || (nan && value[e] == value[e]);
            if (inside && tap != own && !yields) chosen &= ~(1u << e);
          }
        };
        over_taps<kLanes, kKernel, kMaxPoolBackwardTaps>(image, p, h0, w0, over, take);
        A value[kLanes];
        widen(load<kLanes>(grad + ((t.n * p.Ho + oh) * p.Wo + ow) * p.C + t.c, over), value);
#pragma unroll
        for (int e = 0; e < kLanes; ++e) sum[e] += (chosen >> e & 1u) != 0 ? value[e] : A(0);
      }
    }
    store(grad_x + ((t.n * p.H + h) * p.W + t.column) * p.C + t.c, narrow<S>(sum), wanted);
  }
}

// For `height` x `width` pixels, of y or grad_x. NCHW: planes are images of one channel.
inline MaxPoolPlan plan_max_pool(const PoolGeometry& g, int64_t height, int64_t width, int lanes, int64_t full) {
  constexpr int64_t kFar = int64_t(1) << 30;
  const auto step = [](int64_t stride) { return int(stride < kFar ? stride : kFar); };
  MaxPoolPlan p{};
  p.N = g.layout == Layout::kNCHW ? g.N * g.C : g.N, p.C = g.layout == Layout::kNCHW ? 1 : g.C;
  p.H = int(g.H), p.W = int(g.W), p.Ho = int(g.Ho), p.Wo = int(g.Wo), p.kH = int(g.kH), p.kW = int(g.kW);
  p.stride_h = step(g.stride_h), p.stride_w = step(g.stride_w);
  p.pad_top = int(g.pad_top), p.pad_left = int(g.pad_left), p.units = p.C / lanes;
  const int64_t most = p.N * height * width * p.units / full;
  p.rows = int(most < 1 ? 1 : most < kMaxPoolMostRows ? most : kMaxPoolMostRows);
  p.strips = ceil_div(height, p.rows);
  return p;
}

// f(lanes, kernel) with the constants that serve this call.
template <typename S, typename F> cudaError_t with_max_pool_tile(const PoolGeometry& g, bool aligned, F&& f) {
  constexpr int kLanes = kVectorLanes<S>;
  const bool wide = g.layout == Layout::kNHWC && g.C % kLanes == 0 && aligned, three = g.kH == 3 && g.kW == 3;
  using One = std::integral_constant<int, 1>;
  using Any = std::integral_constant<int, 0>;
  using Three = std::integral_constant<int, 3>;
  using Wide = std::integral_constant<int, kLanes>;
  if (wide) return three ? f(Wide{}, Three{}) : f(Wide{}, Any{});
  return three ? f(One{}, Three{}) : f(One{}, Any{});
}

// y = the maxima of x, which has at least one element; `full` threads are enough.
template <typename S>
cudaError_t launch_max_pool2d(const PoolGeometry& g, const S* x, S* y, cudaStream_t stream,
                              int64_t full = kMaxPoolFull) {
  const bool aligned = is_aligned<kVectorBytes>(x) && is_aligned<kVectorBytes>(y);
  return with_max_pool_tile<S>(g, aligned, [&](auto lanes, auto kernel) {
    const MaxPoolPlan p = plan_max_pool(g, g.Ho, g.Wo, lanes, full);
    return launch(&max_pool2d_forward_kernel<S, lanes, kernel>,
                  blocks_for(p.N * p.strips * g.Wo * p.units, kMaxPoolThreads), dim3(kMaxPoolThreads), 0, stream, x, y,
                  p);
  });
}

template <typename S>
cudaError_t launch_max_pool2d_backward(const PoolGeometry& g, const S* grad, const S* x, S* grad_x,
                                       cudaStream_t stream, int64_t full = kMaxPoolFull) {
  const bool aligned =
      is_aligned<kVectorBytes>(grad) && is_aligned<kVectorBytes>(x) && is_aligned<kVectorBytes>(grad_x);
  return with_max_pool_tile<S>(g, aligned, [&](auto lanes, auto kernel) {
    const MaxPoolPlan p = plan_max_pool(g, g.H, g.W, lanes, full);
    return launch(&max_pool2d_backward_kernel<S, lanes, kernel>,
                  blocks_for(p.N * p.strips * g.W * p.units, kMaxPoolThreads), dim3(kMaxPoolThreads), 0, stream, grad,
                  x, grad_x, p);
  });
}

}  // namespace fastcnn
