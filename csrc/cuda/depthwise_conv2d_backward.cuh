// SPDX-License-Identifier: Apache-2.0
// Depthwise convolution, gradients of z = conv(x, weight) + bias + residual: of x, weight and bias. Free of torch.
//
// The gradient of z itself, grad * act'(z), is the forward with another epilogue (launch_depthwise_conv2d with
// kGradient): same kernels, z is computed again and never stored. It is also the gradient of the residual.
//
// The usual NHWC cases have a kernel of their own for x and weight (depthwise_conv2d_backward_tile.cuh), which reads
// x and grad once; a bias, which a convolution before a batch norm has not, takes another pass over grad. The generic
// kernels of this file take any kernel size, stride, dilation, padding and multiplier, NCHW too:
//   input   a thread gathers one pixel of x, of 16 bytes of channels where NHWC allows it: kH kW requests of grad,
//           those without an output switched off.
//   weight  a block owns `across` vectors of channels, up to 9 taps (5 or 3 where a thread has 4 or 8 channels) and a
//           slice of the N Ho Wo outputs; each thread walks over every `down`-th output, loads grad once and x once a
//           tap, and keeps (taps + 1) kLanes sums. The block adds them as a tree in shared memory (1 to 8 KiB) and
//           writes one row of partial sums a tap. L1 serves the overlap of the taps. Slices follow from the shape
//           alone, so two runs agree to the bit.
//   reduce  adds the slices of a partial sum in a fixed order, in double. No atomics anywhere.
#pragma once

#include "depthwise_conv2d.cuh"
#include "depthwise_conv2d_backward_tile.cuh"

namespace fastcnn {

template <typename S, int kLanes, Layout kLayout>
__global__ void __launch_bounds__(kDepthwiseGenericThreads)
    depthwise_conv2d_backward_input_kernel(DepthwiseGradients<S> t, ConvGeometry g) {
  static_assert(kLanes == 1 || kLayout == Layout::kNHWC, "vectors run along channels");
  using A = Accumulator<S>;
  const int64_t vectors = g.N * g.H * g.W * g.C / kLanes, multiplier = g.O / g.C;
  for (int64_t i = int64_t(blockIdx.x) * kDepthwiseGenericThreads + threadIdx.x; i < vectors;
       i += int64_t(gridDim.x) * kDepthwiseGenericThreads) {
    int64_t c, ih, iw, n;
    if constexpr (kLayout == Layout::kNHWC) {
      const int64_t pixel = i / (g.C / kLanes);
      c = (i - pixel * (g.C / kLanes)) * kLanes, iw = pixel % g.W, ih = pixel / g.W % g.H, n = pixel / g.W / g.H;
    } else {
      const int64_t row = i / g.W;
      iw = i - row * g.W, ih = row % g.H, c = row / g.H % g.C, n = row / g.H / g.C;
    }
    A sum[kLanes] = {};
    for (int64_t r = 0; r < g.kH; ++r) {
      const int64_t up = ih + g.pad_top - r * g.dilation_h, oh = up / g.stride_h;
      const bool row_inside = up >= 0 && oh * g.stride_h == up && oh < g.Ho;
      for (int64_t q = 0; q < g.kW; ++q) {
        const int64_t left = iw + g.pad_left - q * g.dilation_w, ow = left / g.stride_w;
        const bool inside = row_inside && left >= 0 && ow * g.stride_w == left && ow < g.Wo;
        for (int64_t o = c * multiplier; o < (c + 1) * multiplier; ++o) {  // with vectors the multiplier is 1
          const int64_t at = kLayout == Layout::kNHWC ? ((n * g.Ho + oh) * g.Wo + ow) * g.O + o
                                                      : ((n * g.O + o) * g.Ho + oh) * g.Wo + ow;
          A v[kLanes];
          widen(load<kLanes>(t.grad + at, inside), v);
#pragma unroll
          for (int e = 0; e < kLanes; ++e) {
            A w[1];
            widen(load<1>(t.weight + (o + e) * g.kH * g.kW + r * g.kW + q, inside), w);
            sum[e] += v[e] * w[0];
          }
        }
      }
    }
    store(t.grad_x + i * kLanes, narrow<S>(sum), true);
  }
}

// of the weight kernel: as many sums as 128 registers hold
FASTCNN_HOST_DEVICE constexpr int depthwise_taps_at_once(int lanes) { return lanes > 4 ? 3 : lanes > 1 ? 5 : 9; }

struct DepthwiseSlices {
  int64_t pixels;           // of a slice, of the N * Ho * Wo
  int64_t slices;
  int64_t channel_blocks, tap_groups;
  int64_t taps;             // summed: kH * kW, or none
  int64_t rows;             // of partial sums in a slice: taps, and one for the bias
  int across, down;         // threads of a block: vectors of channels, outputs
};

template <typename S> DepthwiseSlices depthwise_slices(const ConvGeometry& g, int lanes, bool weight, bool bias) {
  constexpr int64_t kPixelsOfThread = 64, kMostSlices = 512;
  constexpr int kWarp = 32;
  DepthwiseSlices s{};
  s.across = 1;
  while (g.layout == Layout::kNHWC && s.across < kWarp && s.across * int64_t(lanes) < g.O) s.across *= 2;
  s.down = kDepthwiseGenericThreads / s.across;
  s.channel_blocks = ceil_div(g.O, s.across * int64_t(lanes));
  s.taps = weight ? g.kH * g.kW : 0, s.rows = s.taps + bias;
  s.tap_groups = s.taps > 0 ? ceil_div(s.taps, depthwise_taps_at_once(lanes)) : 1;
  const int64_t pixels = g.N * g.Ho * g.Wo;
  const int64_t wanted = ceil_div(pixels, s.down * kPixelsOfThread);
  s.pixels = ceil_div(pixels, wanted < kMostSlices ? wanted : kMostSlices);
  s.slices = ceil_div(pixels, s.pixels);
  return s;
}

// Steps through the outputs n, oh, ow by a fixed number of them, without a division a step.
struct OutputWalk {
  int64_t n, oh, ow, step_n, step_oh, step_ow;
  __device__ __forceinline__ OutputWalk(const ConvGeometry& g, int64_t first, int64_t step)
      : n(first / g.Wo / g.Ho), oh(first / g.Wo % g.Ho), ow(first % g.Wo), step_n(step / g.Wo / g.Ho),
        step_oh(step / g.Wo % g.Ho), step_ow(step % g.Wo) {}
  __device__ __forceinline__ void advance(const ConvGeometry& g) {
    n += step_n, oh += step_oh, ow += step_ow;
    if (ow >= g.Wo) ow -= g.Wo, ++oh;
    if (oh >= g.Ho) oh -= g.Ho, ++n;
  }
};

template <typename S, int kLanes, Layout kLayout>
__global__ void __launch_bounds__(kDepthwiseGenericThreads, 2)
    depthwise_conv2d_backward_weight_kernel(DepthwiseGradients<S> t, ConvGeometry g, DepthwiseSlices s) {
  using A = Accumulator<S>;
  constexpr int kTaps = depthwise_taps_at_once(kLanes);
  alignas(kVectorBytes) __shared__ A shared[kDepthwiseGenericThreads][kLanes];
  const int across = int(threadIdx.x) % s.across, down = int(threadIdx.x) / s.across;
  const int64_t pixels = g.N * g.Ho * g.Wo;
  for (int64_t work = blockIdx.x; work < s.channel_blocks * s.tap_groups * s.slices; work += gridDim.x) {
    const int64_t rest = work / s.channel_blocks, slice = rest / s.tap_groups;
    const int64_t o = ((work - rest * s.channel_blocks) * s.across + across) * kLanes, c = o / (g.O / g.C);
    const int64_t first_tap = (rest - slice * s.tap_groups) * kTaps, first_r = first_tap / g.kW;
    const int64_t begin = slice * s.pixels, end = begin + s.pixels < pixels ? begin + s.pixels : pixels;
    A sum[kTaps + 1][kLanes] = {};  // the last one of grad alone
    OutputWalk at(g, begin + down, s.down);
    for (int64_t base = begin; base < end; base += s.down) {
      const bool inside = base + down < end && o < g.O;
      A v[kLanes], u[kLanes];
      widen(load<kLanes>(t.grad + (kLayout == Layout::kNHWC ? (base + down) * g.O + o
                                                            : ((at.n * g.O + o) * g.Ho + at.oh) * g.Wo + at.ow),
                         inside),
            v);
#pragma unroll
      for (int e = 0; e < kLanes; ++e) sum[kTaps][e] += v[e];
      int64_t r = first_r, q = first_tap - first_r * g.kW;
#pragma unroll
      for (int k = 0; k < kTaps; ++k) {
        if (first_tap + k >= s.taps) break;
        const int64_t ih = at.oh * g.stride_h - g.pad_top + r * g.dilation_h;
        const int64_t iw = at.ow * g.stride_w - g.pad_left + q * g.dilation_w;
        const int64_t from = kLayout == Layout::kNHWC ? ((at.n * g.H + ih) * g.W + iw) * g.C + c
                                                      : ((at.n * g.C + c) * g.H + ih) * g.W + iw;
        widen(load<kLanes>(t.x + from, inside && ih >= 0 && ih < g.H && iw >= 0 && iw < g.W), u);
#pragma unroll
        for (int e = 0; e < kLanes; ++e) sum[k][e] += v[e] * u[e];
        if (++q == g.kW) q = 0, ++r;
      }
      at.advance(g);
    }
#pragma unroll
    for (int k = 0; k <= kTaps; ++k) {
      const int64_t row = k == kTaps ? s.taps : first_tap + k;
      if (k < kTaps ? row >= s.taps : first_tap > 0 || s.rows == s.taps) continue;  // the same for the whole block
      __syncthreads();
#pragma unroll
      for (int e = 0; e < kLanes; ++e) shared[threadIdx.x][e] = sum[k][e];
      for (int half = s.down / 2; half > 0; half /= 2) {
        __syncthreads();
        if (down < half) {
#pragma unroll
          for (int e = 0; e < kLanes; ++e) shared[threadIdx.x][e] += shared[int(threadIdx.x) + half * s.across][e];
        }
      }
      constexpr int kMost = kVectorLanes<A>, kStore = kLanes < kMost ? kLanes : kMost;
      A* to = t.partials + (slice * s.rows + row) * g.O + o;
#pragma unroll
      for (int e = 0; e < kLanes; e += kStore) {
        Vec<A, kStore> some;
        memcpy(&some, &shared[threadIdx.x][e], sizeof some);
        store(to + e, some, down == 0 && o < g.O);
      }
    }
  }
}

constexpr int kReduceAcross = 32, kReduceDown = 8;

// grad_weight from rows [0, taps) of every slice, grad_bias from the row behind them; each is a sum over the slices.
template <typename S>
__global__ void __launch_bounds__(kReduceAcross* kReduceDown)
    depthwise_conv2d_backward_reduce_kernel(DepthwiseGradients<S> t, int64_t O, int64_t taps, int64_t rows,
                                            int64_t slices) {
  using A = Accumulator<S>;
  __shared__ double shared[kReduceDown][kReduceAcross];
  const int across = int(threadIdx.x) % kReduceAcross, down = int(threadIdx.x) / kReduceAcross;
  const int64_t element = int64_t(blockIdx.x) * kReduceAcross + across, row = element / O, o = element - row * O;
  const bool inside = row < rows;
  double sum = 0;
#pragma unroll 4
  for (int64_t base = 0; base < slices; base += kReduceDown) {
    A v[1];
    widen(load<1>(t.partials + (base + down) * rows * O + element, inside && base + down < slices), v);
    sum += double(v[0]);
  }
  shared[down][across] = sum;
  __syncthreads();
  sum = 0;
  for (int j = 0; j < kReduceDown; ++j) sum += shared[j][across];
  const A total[1] = {A(sum)};
  store(t.grad_weight + o * taps + row, narrow<S>(total), down == 0 && inside && row < taps);
  store(t.grad_bias + o, narrow<A>(total), down == 0 && inside && row >= taps);
}

template <typename S>
cudaError_t launch_depthwise_reduce(const DepthwiseGradients<S>& t, const ConvGeometry& g, int64_t taps, int64_t rows,
                                    int64_t slices, cudaStream_t stream) {
  return launch(&depthwise_conv2d_backward_reduce_kernel<S>, blocks_for(rows * g.O, kReduceAcross),
                dim3(kReduceAcross * kReduceDown), 0, stream, t, g.O, taps, rows, slices);
}

// As many blocks as the work has, or as a grid takes: the kernel goes round for the rest.
inline dim3 blocks_up_to_the_limit(int64_t blocks) {
  constexpr int64_t kMost = int64_t(1) << 30;
  return dim3(unsigned(blocks < kMost ? blocks : kMost));
}

template <typename S, int kLanes, Layout kLayout>
cudaError_t launch_depthwise_backward_generic(const DepthwiseGradients<S>& t, const ConvGeometry& g,
                                              cudaStream_t stream) {
  const dim3 threads(kDepthwiseGenericThreads);
  if (t.grad_x != nullptr) {
    const int64_t blocks = ceil_div(g.N * g.H * g.W * g.C / kLanes, kDepthwiseGenericThreads);
    const cudaError_t error = launch(&depthwise_conv2d_backward_input_kernel<S, kLanes, kLayout>,
                                     blocks_up_to_the_limit(blocks), threads, 0, stream, t, g);
    if (error != cudaSuccess) return error;
  }
  if (t.grad_weight == nullptr && t.grad_bias == nullptr) return cudaSuccess;
  const DepthwiseSlices s = depthwise_slices<S>(g, kLanes, t.grad_weight != nullptr, t.grad_bias != nullptr);
  const cudaError_t error =
      launch(&depthwise_conv2d_backward_weight_kernel<S, kLanes, kLayout>,
             blocks_up_to_the_limit(s.channel_blocks * s.tap_groups * s.slices), threads, 0, stream, t, g, s);
  return error != cudaSuccess ? error : launch_depthwise_reduce(t, g, s.taps, s.rows, s.slices, stream);
}

// Whether the tiles take it: what the forward's take, unless x is empty.
template <typename S> bool depthwise_backward_has_tile(const DepthwiseGradients<S>& t, const ConvGeometry& g) {
  const DepthwiseTensors<S> alike = {t.x, t.weight, nullptr, nullptr, t.grad, t.grad_x};
  return g.H > 0 && g.W > 0 && depthwise_has_tile(alike, g);
}

// Elements that DepthwiseGradients::partials needs, whichever kernels will take the tensors; the output has at least
// one element.
template <typename S> int64_t depthwise_partials(const ConvGeometry& g, bool weight, bool bias) {
  if (!weight && !bias) return 0;
  const auto generic = [&](int lanes) {
    const DepthwiseSlices s = depthwise_slices<S>(g, lanes, weight, bias);
    return s.slices * s.rows * g.O;
  };
  const int64_t one = generic(1), wide = generic(kVectorLanes<S>), most = one > wide ? one : wide;
  if constexpr (sizeof(S) <= sizeof(float)) {
    if (depthwise_backward_has_tile(DepthwiseGradients<S>{}, g)) {
      const int64_t slices = with_depthwise_tile<DepthwiseGradientTile, S>(
          g, [&](auto tile) { return slices_of(plan_depthwise_gradient<decltype(tile)>(g)); });
      return most > slices * g.kH * g.kW * g.O ? most : slices * g.kH * g.kW * g.O;
    }
  }
  return most;
}

// The gradients that are wanted, from that of z. x has at least one element where grad_x is, and z has one.
template <typename S>
cudaError_t launch_depthwise_conv2d_backward(const DepthwiseGradients<S>& t, const ConvGeometry& g,
                                             cudaStream_t stream) {
  DepthwiseGradients<S> rest = t;
  if constexpr (sizeof(S) <= sizeof(float)) {
    if ((t.grad_x != nullptr || t.grad_weight != nullptr) && depthwise_backward_has_tile(t, g)) {
      const cudaError_t error = with_depthwise_tile<DepthwiseGradientTile, S>(g, [&](auto tile) {
        const DepthwiseGradientPlan p = plan_depthwise_gradient<decltype(tile)>(g);
        const cudaError_t failed = launch_depthwise_backward_tile<S, decltype(tile)>(t, p, stream);
        if (failed != cudaSuccess || t.grad_weight == nullptr) return failed;
        return launch_depthwise_reduce(t, g, g.kH * g.kW, g.kH * g.kW, slices_of(p), stream);
      });
      if (error != cudaSuccess) return error;
      rest.grad_x = rest.grad_weight = nullptr;
    }
  }
  if (g.layout == Layout::kNCHW) return launch_depthwise_backward_generic<S, 1, Layout::kNCHW>(rest, g, stream);
  constexpr int kWide = sizeof(S) <= sizeof(float) ? kVectorLanes<S> : 1;  // double is for checks, not for speed
  const bool wide = g.O == g.C && g.C % kWide == 0 && is_aligned<kVectorBytes>(t.grad) &&
                    is_aligned<kVectorBytes>(t.x) && is_aligned<kVectorBytes>(t.grad_x);
  return wide ? launch_depthwise_backward_generic<S, kWide, Layout::kNHWC>(rest, g, stream)
              : launch_depthwise_backward_generic<S, 1, Layout::kNHWC>(rest, g, stream);
}

}  // namespace fastcnn
