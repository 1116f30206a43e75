// SPDX-License-Identifier: Apache-2.0
// Depthwise kH x kW convolution, forward: y = act(conv(x, weight) * scale + shift + residual), scale, shift and
// residual optional. Free of torch.
//
// The usual NHWC cases have kernels of their own (depthwise_conv2d_tile.cuh). Everything else, NCHW too, takes the
// generic kernel of this file: a thread computes one output pixel, of 16 bytes of channels where NHWC allows it, and
// asks for its kH kW inputs itself.
#pragma once

#include "depthwise_conv2d_tile.cuh"

namespace fastcnn {

constexpr int kDepthwiseGenericThreads = 256;

// Any kernel size, stride, dilation, padding and multiplier: a thread computes one output pixel of kLanes channels
// (NHWC without a multiplier) or of one. Neighbouring threads have neighbouring channels (NHWC) or columns (NCHW).
template <typename S, int kLanes, Layout kLayout, bool kGradient>
__global__ void __launch_bounds__(kDepthwiseGenericThreads)
    depthwise_conv2d_generic_forward_kernel(DepthwiseTensors<S> t, ConvGeometry g, Activation activation) {
  static_assert(kLanes == 1 || kLayout == Layout::kNHWC, "vectors run along channels");
  using A = Accumulator<S>;
  const int64_t vectors = g.N * g.Ho * g.Wo * g.O / kLanes;
  for (int64_t i = int64_t(blockIdx.x) * kDepthwiseGenericThreads + threadIdx.x; i < vectors;
       i += int64_t(gridDim.x) * kDepthwiseGenericThreads) {
    int64_t o, oh, ow, n;
    if constexpr (kLayout == Layout::kNHWC) {
      const int64_t pixel = i / (g.O / kLanes);
      o = (i - pixel * (g.O / kLanes)) * kLanes, ow = pixel % g.Wo, oh = pixel / g.Wo % g.Ho, n = pixel / g.Wo / g.Ho;
    } else {
      const int64_t row = i / g.Wo;
      ow = i - row * g.Wo, oh = row % g.Ho, o = row / g.Ho % g.O, n = row / g.Ho / g.O;
    }
    const int64_t c = o / (g.O / g.C);
    A sum[kLanes] = {};
    for (int64_t r = 0; r < g.kH; ++r) {
      const int64_t ih = oh * g.stride_h - g.pad_top + r * g.dilation_h;
      for (int64_t q = 0; q < g.kW; ++q) {
        const int64_t iw = ow * g.stride_w - g.pad_left + q * g.dilation_w;
        const bool inside = ih >= 0 && ih < g.H && iw >= 0 && iw < g.W;
        const int64_t at =
            kLayout == Layout::kNHWC ? ((n * g.H + ih) * g.W + iw) * g.C + c : ((n * g.C + c) * g.H + ih) * g.W + iw;
        A v[kLanes];
        widen(load<kLanes>(t.x + at, inside), v);
#pragma unroll
        for (int e = 0; e < kLanes; ++e) {
          A w[1];
          widen(load<1>(t.weight + (o + e) * g.kH * g.kW + r * g.kW + q, inside), w);
          sum[e] += v[e] * w[0];
        }
      }
    }
    A residual[kLanes] = {};
    if (t.residual != nullptr) widen(load<kLanes>(t.residual + i * kLanes, true), residual);
#pragma unroll
    for (int e = 0; e < kLanes; ++e) {
      A scale[1] = {A(1)}, shift[1] = {A(0)};
      if (t.scale != nullptr) widen(load<1>(t.scale + o + e, true), scale);
      if (t.shift != nullptr) widen(load<1>(t.shift + o + e, true), shift);
      sum[e] = sum[e] * scale[0] + shift[0] + residual[e];
    }
    if constexpr (kGradient) {
      A grad[kLanes];
      widen(load<kLanes>(t.grad + i * kLanes, true), grad);
      differentiate(activation, sum);
#pragma unroll
      for (int e = 0; e < kLanes; ++e) sum[e] *= grad[e];
    } else {
      activate(activation, sum);
    }
    store(t.y + i * kLanes, narrow<S>(sum), true);
  }
}

template <typename S, int kLanes, Layout kLayout, bool kGradient>
cudaError_t launch_depthwise_generic(const DepthwiseTensors<S>& t, const ConvGeometry& g, Activation activation,
                                     cudaStream_t stream) {
  constexpr int64_t kMostBlocks = int64_t(1) << 30;  // the kernel goes round for the rest
  const int64_t blocks = ceil_div(g.N * g.Ho * g.Wo * g.O / kLanes, kDepthwiseGenericThreads);
  return launch(&depthwise_conv2d_generic_forward_kernel<S, kLanes, kLayout, kGradient>,
                dim3(unsigned(blocks < kMostBlocks ? blocks : kMostBlocks)), dim3(kDepthwiseGenericThreads), 0, stream,
                t, g, activation);
}

// Tiles of even size: the fewest that have at most `rows` rows, then the rows spread over them.
template <typename T> DepthwisePlan plan_depthwise(const ConvGeometry& g, Activation activation, int rows) {
  DepthwisePlan p{};
  p.H = int(g.H), p.W = int(g.W), p.C = int(g.C), p.Ho = int(g.Ho), p.Wo = int(g.Wo);
  p.pad_top = int(g.pad_top), p.pad_left = int(g.pad_left);
  p.groups = p.C / T::kLanes;
  const int even = p.groups % 2 == 0 ? 2 : 1;  // blocks begin at a sector's boundary
  p.chunk = int(ceil_div(ceil_div(p.groups, ceil_div(p.groups, T::kChunk)), even)) * even;
  p.chunks = int(ceil_div(p.groups, p.chunk));
  // A chunk that two warps share costs sectors, idle threads cost time: whole chunks to a warp where that leaves at
  // most 2 of 32 lanes idle.
  constexpr int kWarp = 32, kIdle = 2;
  p.stretch = p.chunk <= kWarp && kWarp % p.chunk <= kIdle ? kWarp : T::kThreads;
  p.strips = int(ceil_div(p.Wo, T::kStrip));
  p.rows = int(ceil_div(p.Ho, ceil_div(p.Ho, rows)));
  p.row_tiles = int(ceil_div(p.Ho, p.rows));
  p.of_image = unsigned(p.row_tiles * p.strips), p.positions = unsigned(g.N * p.of_image);
  p.tiles = unsigned(ceil_div(p.of_image, T::kThreads / p.stretch * (p.stretch / p.chunk)));
  p.activation = activation;
  if (has_bounds(activation)) p.bounds = bounds_of(activation);
  return p;
}

template <typename T> DepthwisePlan plan_depthwise(const ConvGeometry& g, Activation activation) {
  constexpr int64_t kThreadsThatFill =
      int64_t(132) * 4 * T::kThreads * 4;  // four waves of the largest device that we know
  const DepthwisePlan p = plan_depthwise<T>(g, activation, T::kRows);
  const bool abound = int64_t(p.positions) * p.groups >= 2 * kThreadsThatFill;
  return abound ? plan_depthwise<T>(g, activation, 2 * T::kRows) : p;
}

// f(Tile<S, kernel, stride>{}) for a geometry that has a tile.
template <template <typename, int, int> class Tile, typename S, typename F>
auto with_depthwise_tile(const ConvGeometry& g, F&& f) {
  const bool dense = g.stride_h == 1;
  if (g.kH == 3) return dense ? f(Tile<S, 3, 1>()) : f(Tile<S, 3, 2>());
  if (g.kH == 5) return dense ? f(Tile<S, 5, 1>()) : f(Tile<S, 5, 2>());
  return dense ? f(Tile<S, 7, 1>()) : f(Tile<S, 7, 2>());
}

template <typename S, typename T, bool kGradient>
cudaError_t launch_depthwise_tile(const DepthwiseTensors<S>& t, const ConvGeometry& g, Activation activation,
                                  cudaStream_t stream) {
  const DepthwisePlan p = plan_depthwise<T>(g, activation);
  int64_t blocks = ceil_div(p.positions, T::kThreads / p.stretch * (p.stretch / p.chunk)) * p.chunks;
  const auto run = [&](auto kernel) {
    return launch(kernel, dim3(unsigned(blocks)), dim3(T::kThreads), 0, stream, t, p);
  };
  using E = DepthwiseEpilogue;
  if constexpr (kGradient) {
    return run(&depthwise_conv2d_forward_kernel<S, T, E::kGradient>);
  } else {
    if (t.sums != nullptr) {
      blocks = g.N * p.tiles * p.chunks;
      return run(&depthwise_conv2d_forward_kernel<S, T, E::kSums>);
    }
    const bool plain = has_bounds(activation) && t.residual == nullptr;
    return plain ? run(&depthwise_conv2d_forward_kernel<S, T, E::kPlain>)
                 : run(&depthwise_conv2d_forward_kernel<S, T, E::kGeneral>);
  }
}

// Whether the specialised kernels take it: everything that they count in 32 bits stays far from their limit.
template <typename S> bool depthwise_has_tile(const DepthwiseTensors<S>& t, const ConvGeometry& g) {
  constexpr int64_t kLimit = int64_t(1) << 30;
  const bool known = g.layout == Layout::kNHWC && g.O == g.C && g.kH == g.kW && (g.kH == 3 || g.kH == 5 || g.kH == 7) &&
                     g.stride_h == g.stride_w && (g.stride_h == 1 || g.stride_h == 2) && g.dilation_h == 1 &&
                     g.dilation_w == 1;
  const bool small = g.H < kLimit && g.W < kLimit && g.C < kLimit / 64 && g.pad_top < kLimit && g.pad_left < kLimit &&
                     g.pad_bottom < kLimit && g.pad_right < kLimit && g.Ho * 2 < kLimit && g.Wo * 2 < kLimit &&
                     double(g.N) * double(g.Ho) * double(g.Wo) * double(g.C) < double(kLimit) * 32;
  return known && small && g.C % kVectorLanes<S> == 0 && is_aligned<kVectorBytes>(t.x) &&
         is_aligned<kVectorBytes>(t.y) && is_aligned<kVectorBytes>(t.weight) && is_aligned<kVectorBytes>(t.residual) &&
         is_aligned<kVectorBytes>(t.grad);
}

// Rows of sums that an image gets where DepthwiseTensors::sums asks for them; 0 where no kernel computes them.
template <typename S> int64_t depthwise_sum_tiles(const DepthwiseTensors<S>& t, const ConvGeometry& g) {
  if constexpr (sizeof(S) <= sizeof(float)) {
    if (depthwise_has_tile(t, g))
      return with_depthwise_tile<DepthwiseTile, S>(
          g, [&](auto tile) { return int64_t(plan_depthwise<decltype(tile)>(g, Activation::kIdentity).tiles); });
  }
  return 0;
}

// y[n, o] = act(conv(x[n, o / m], weight[o]) * scale[o] + shift[o] + residual[n, o]), m = O / C. The output has at
// least one element. kGradient: y is t.grad times act' of the same sum instead.
template <typename S, bool kGradient = false>
cudaError_t launch_depthwise_conv2d(const DepthwiseTensors<S>& t, const ConvGeometry& g, Activation activation,
                                    cudaStream_t stream) {
  if constexpr (sizeof(S) <= sizeof(float)) {
    if (depthwise_has_tile(t, g)) {
      return with_depthwise_tile<DepthwiseTile, S>(g, [&](auto tile) {
        return launch_depthwise_tile<S, decltype(tile), kGradient>(t, g, activation, stream);
      });
    }
  }
  if (t.sums != nullptr) return cudaErrorNotSupported;
  if (g.layout == Layout::kNCHW)
    return launch_depthwise_generic<S, 1, Layout::kNCHW, kGradient>(t, g, activation, stream);
  const bool wide = g.O == g.C && g.C % kVectorLanes<S> == 0 && is_aligned<kVectorBytes>(t.x) &&
                    is_aligned<kVectorBytes>(t.y) && is_aligned<kVectorBytes>(t.residual) &&
                    is_aligned<kVectorBytes>(t.grad);
  return wide ? launch_depthwise_generic<S, kVectorLanes<S>, Layout::kNHWC, kGradient>(t, g, activation, stream)
              : launch_depthwise_generic<S, 1, Layout::kNHWC, kGradient>(t, g, activation, stream);
}

}  // namespace fastcnn
