// SPDX-License-Identifier: Apache-2.0
// Depthwise convolution, gradients of the input (stride above 1 or a depth multiplier; stride 1 is the forward kernel
// with a turned weight) and of the weight and bias.
//
// grad_x gathers: an input pixel sums over the taps whose output exists, 2.25 of 9 for 3x3 of stride 2. NHWC lists
// those taps once a pixel and runs over channel vectors; NCHW computes each residue of (h, w) modulo the stride as a
// small convolution of stride 1 over a padded copy of grad and spreads the results. Both read grad once from memory and
// write grad_x once.
//
// grad_weight sums over N * Ho * Wo, up to 2e5 products in one MobileNet layer, so it sums in levels: registers over
// about kLevel outputs, then the accumulator's type over a slice of the rows, then double over the slices. The slices
// follow from the shape alone, never from the threads.
#include "../common/dispatch.h"
#include "depthwise_conv2d.h"
#include "depthwise_conv2d_plane.h"
#include "parallel.h"
#include "simd.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {
namespace {

constexpr int64_t kGrainMacs = 1 << 17;
constexpr int64_t kPlaneElements = 6144;
constexpr int64_t kLevel = 256;  // outputs summed in one register
constexpr int64_t kSlices = 32;  // at most, of the N * Ho rows

int64_t grain_of(int64_t macs_per_item) { return macs_per_item > 0 ? ceil_div(kGrainMacs, macs_per_item) : 1; }

// ---- grad_x, NHWC

template <typename S> void backward_input_nhwc(const DepthwiseBackwardArgs& args) {
  using A = Accumulator<S>;
  using V = VecOf<S>;
  constexpr int kLanes = V::kLanes;
  constexpr int kVectors = 4;
  const ConvGeometry& g = args.geometry;
  const int64_t taps = g.kH * g.kW, m = g.O / g.C;
  const Scratch<A> weight(taps * g.O);  // [taps, O]
  for (int64_t o = 0; o < g.O; ++o)
    for (int64_t t = 0; t < taps; ++t)
      weight[t * g.O + o] = to_accumulator(static_cast<const S*>(args.weight)[o * taps + t]);
  parallel_for(g.N * g.H, grain_of(g.W * g.O * ceil_div(taps, g.stride_h * g.stride_w)),
               [&](int64_t begin, int64_t end) {
                 const Scratch<A> row(g.O);
                 const Scratch<const S*> from(taps);
                 const Scratch<const A*> by(taps);
                 for (int64_t item = begin; item < end; ++item) {
                   const int64_t n = item / g.H, h = item % g.H + g.pad_top;
                   const S* grad = static_cast<const S*>(args.grad) + n * g.Ho * g.Wo * g.O;
                   S* grad_x = static_cast<S*>(args.grad_x) + item * g.W * g.C;
                   for (int64_t iw = 0; iw < g.W; ++iw, grad_x += g.C) {
                     int64_t count = 0;
                     for (int64_t kh = 0; kh < g.kH; ++kh) {
                       const int64_t up = h - kh * g.dilation_h, ho = up / g.stride_h;
                       if (up < 0 || up % g.stride_h != 0 || ho >= g.Ho) continue;
                       for (int64_t kw = 0; kw < g.kW; ++kw) {
                         const int64_t left = iw + g.pad_left - kw * g.dilation_w, wo = left / g.stride_w;
                         if (left < 0 || left % g.stride_w != 0 || wo >= g.Wo) continue;
                         from[count] = grad + (ho * g.Wo + wo) * g.O;
                         by[count++] = weight + (kh * g.kW + kw) * g.O;
                       }
                     }
                     const auto put = [&](V sum, int64_t o, int lanes) {
                       if (m > 1)
                         sum.store(row + o, lanes);
                       else if (lanes == kLanes)
                         sum.store(grad_x + o);
                       else
                         sum.store(grad_x + o, lanes);
                     };
                     int64_t o = 0;
                     for (; o + kVectors * kLanes <= g.O; o += kVectors * kLanes) {
                       V sum[kVectors];
                       for (int64_t t = 0; t < count; ++t)
                         for (int u = 0; u < kVectors; ++u)
                           sum[u] = fma(V::load(from[t] + o + u * kLanes), V::load(by[t] + o + u * kLanes), sum[u]);
                       for (int u = 0; u < kVectors; ++u) put(sum[u], o + u * kLanes, kLanes);
                     }
                     for (; o < g.O; o += kLanes) {
                       const int lanes = g.O - o < kLanes ? int(g.O - o) : kLanes;
                       V sum;
                       for (int64_t t = 0; t < count; ++t)
                         sum = fma(V::load(from[t] + o, lanes), V::load(by[t] + o, lanes), sum);
                       put(sum, o, lanes);
                     }
                     if (m == 1) continue;
                     for (int64_t c = 0; c < g.C; ++c) {
                       A sum = 0;
                       for (int64_t j = 0; j < m; ++j) sum += row[c * m + j];
                       grad_x[c] = from_accumulator<S>(sum);
                     }
                   }
                 }
               });
}

// ---- grad_x, NCHW

// Padded input row p = ih + pad_top = q * Sh + a takes tap kh of phase a (kh * Dh % Sh == a) from grad row q - kh * Dh
// / Sh. The scratch holds the m planes of grad for a block of q rows with kReach zero rows and columns ahead.
template <typename S> void backward_input_nchw(const DepthwiseBackwardArgs& args) {
  using A = Accumulator<S>;
  const ConvGeometry& g = args.geometry;
  const int64_t m = g.O / g.C, taps = g.kH * g.kW;
  const int64_t reach_h = (g.kH - 1) * g.dilation_h / g.stride_h, reach_w = (g.kW - 1) * g.dilation_w / g.stride_w;
  const int64_t q_rows = (g.H - 1 + g.pad_top) / g.stride_h + 1, q_columns = (g.W - 1 + g.pad_left) / g.stride_w + 1;
  const int64_t pitch = q_columns + reach_w;
  const int64_t fitting = kPlaneElements / (m * pitch) - reach_h;
  const int64_t blocks = ceil_div(q_rows, fitting < 1 ? 1 : fitting), block_rows = ceil_div(q_rows, blocks);
  const int64_t plane = (block_rows + reach_h) * pitch;
  parallel_for(g.N * g.C * blocks, grain_of(block_rows * g.Wo * taps * m), [&](int64_t begin, int64_t end) {
    const Scratch<A> grad(m * plane + kSlack<A>), sums(block_rows * pitch + kSlack<A>), weight(taps * m);
    const Scratch<int64_t> offset(taps * m);
    fill_zero<A>(grad + m * plane, kSlack<A>);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t nc = item / blocks, q0 = item % blocks * block_rows;
      const int64_t rows = q_rows - q0 < block_rows ? q_rows - q0 : block_rows;
      for (int64_t j = 0; j < m; ++j)
        for (int64_t r = 0; r < rows + reach_h; ++r) {
          const int64_t ho = q0 + r - reach_h;
          A* to = grad + j * plane + r * pitch;
          const int64_t width = ho < 0 || ho >= g.Ho ? 0 : g.Wo < q_columns ? g.Wo : q_columns;
          fill_zero(to, reach_w);
          widen_row(static_cast<const S*>(args.grad) + ((nc * m + j) * g.Ho + (width > 0 ? ho : 0)) * g.Wo,
                    to + reach_w, width);
          fill_zero(to + reach_w + width, pitch - reach_w - width);
        }
      for (int64_t a = 0; a < g.stride_h; ++a)
        for (int64_t b = 0; b < g.stride_w; ++b) {
          int64_t count = 0;
          for (int64_t j = 0; j < m; ++j)
            for (int64_t t = 0; t < taps; ++t) {
              const int64_t h = t / g.kW * g.dilation_h, w = t % g.kW * g.dilation_w;
              if (h % g.stride_h != a || w % g.stride_w != b) continue;
              offset[count] = j * plane + (reach_h - h / g.stride_h) * pitch + reach_w - w / g.stride_w;
              weight[count++] = to_accumulator(static_cast<const S*>(args.weight)[((nc % g.C) * m + j) * taps + t]);
            }
          correlate<0, A>(grad, offset, weight, count, A(0), sums, (rows - 1) * pitch + q_columns);
          for (int64_t r = 0; r < rows; ++r) {
            const int64_t ih = (q0 + r) * g.stride_h + a - g.pad_top;
            if (ih < 0 || ih >= g.H) continue;
            S* row = static_cast<S*>(args.grad_x) + (nc * g.H + ih) * g.W;
            const A* from = sums + r * pitch;
            const int64_t shift = g.pad_left - b;
            for (int64_t q = shift > 0 ? ceil_div(shift, g.stride_w) : 0; q * g.stride_w - shift < g.W; ++q)
              row[q * g.stride_w - shift] = from_accumulator<S>(from[q]);
          }
        }
    }
  });
}

// ---- grad_weight, NHWC

template <typename S> struct WeightJob {
  const ConvGeometry& g;
  const S* x;               // first channel of the block
  const S* grad;            // alike
  Accumulator<S>* partial;  // [taps + 1, kLanes], the last row sums grad
  int lanes;
};

template <typename A> FASTCNN_INLINE void add_to(A* p, Vec<A> sum) { (Vec<A>::load(p) + sum).store(p); }

// Adds rows [begin, end) of the N * Ho output rows. All taps of a small kernel are summed side by side: one load of x a
// product.
template <typename S, int kH, int kW> struct UnrolledWeight {
  using V = VecOf<S>;
  static FASTCNN_INLINE void add(const WeightJob<S>& job, int64_t begin, int64_t end) {
    const ConvGeometry& g = job.g;
    V sum[kH][kW], total;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / g.Ho, ih = row % g.Ho * g.stride_h - g.pad_top;
      const S* x = job.x + n * g.H * g.W * g.C;
      const S* grad = job.grad + row * g.Wo * g.C;
      for (int64_t wo = 0; wo < g.Wo; ++wo) {
        const V v = V::load(grad + wo * g.C);
        total = total + v;
        const int64_t iw = wo * g.stride_w - g.pad_left;
        const bool inside = iw >= 0 && iw + (kW - 1) * g.dilation_w < g.W;
#pragma GCC unroll 8
        for (int kh = 0; kh < kH; ++kh) {
          const int64_t h = ih + kh * g.dilation_h;
          if (h < 0 || h >= g.H) continue;
          const S* from = x + (h * g.W + iw) * g.C;
#pragma GCC unroll 8
          for (int kw = 0; kw < kW; ++kw) {
            const int64_t w = kw * g.dilation_w;
            if (inside || (iw + w >= 0 && iw + w < g.W)) sum[kh][kw] = fma(v, V::load(from + w * g.C), sum[kh][kw]);
          }
        }
      }
    }
    for (int kh = 0; kh < kH; ++kh)
      for (int kw = 0; kw < kW; ++kw) add_to(job.partial + (kh * kW + kw) * V::kLanes, sum[kh][kw]);
    add_to(job.partial + kH * kW * V::kLanes, total);
  }
};

// Any kernel: tap after tap, over exactly the outputs that it touches.
template <typename S, bool kPartial> struct GeneralWeight {
  using V = VecOf<S>;
  static FASTCNN_INLINE V load(const S* p, int lanes) { return kPartial ? V::load(p, lanes) : V::load(p); }
  static FASTCNN_INLINE void add(const WeightJob<S>& job, int64_t begin, int64_t end) {
    const ConvGeometry& g = job.g;
    for (int64_t t = 0; t < g.kH * g.kW; ++t) {
      const int64_t h = t / g.kW * g.dilation_h - g.pad_top, w = t % g.kW * g.dilation_w - g.pad_left;
      const int64_t first = w < 0 ? ceil_div(-w, g.stride_w) : 0;
      int64_t last = g.W > w ? ceil_div(g.W - w, g.stride_w) : 0;
      if (last > g.Wo) last = g.Wo;
      V sum[2];
      for (int64_t row = begin; row < end; ++row) {
        const int64_t ih = row % g.Ho * g.stride_h + h;
        if (ih < 0 || ih >= g.H) continue;
        const S* x = job.x + ((row / g.Ho * g.H + ih) * g.W + w) * g.C;
        const S* grad = job.grad + row * g.Wo * g.C;
        int64_t wo = first;
        for (; wo + 1 < last; wo += 2) {
          sum[0] = fma(load(grad + wo * g.C, job.lanes), load(x + wo * g.stride_w * g.C, job.lanes), sum[0]);
          sum[1] =
              fma(load(grad + (wo + 1) * g.C, job.lanes), load(x + (wo + 1) * g.stride_w * g.C, job.lanes), sum[1]);
        }
        if (wo < last)
          sum[0] = fma(load(grad + wo * g.C, job.lanes), load(x + wo * g.stride_w * g.C, job.lanes), sum[0]);
      }
      add_to(job.partial + t * V::kLanes, sum[0] + sum[1]);
    }
    V total;
    for (int64_t i = begin * g.Wo; i < end * g.Wo; ++i) total = total + load(job.grad + i * g.C, job.lanes);
    add_to(job.partial + g.kH * g.kW * V::kLanes, total);
  }
};

template <typename S, typename Sum> void backward_weight_nhwc(const DepthwiseBackwardArgs& args) {
  using A = Accumulator<S>;
  constexpr int kLanes = VecOf<S>::kLanes;
  const ConvGeometry& g = args.geometry;
  const int64_t taps = g.kH * g.kW, blocks = ceil_div(g.C, kLanes), all_rows = g.N * g.Ho;
  const int64_t step = g.Wo < kLevel ? kLevel / g.Wo : 1;
  const int64_t slices = all_rows < kSlices ? all_rows : kSlices;
  const int lanes = g.C < kLanes ? int(g.C) : kLanes;
  const int64_t block_size = (taps + 1) * kLanes;
  const Scratch<A> partial(slices * blocks * block_size);
  const auto channel = [&](int64_t block) { return block * kLanes <= g.C - lanes ? block * kLanes : g.C - lanes; };
  parallel_for(slices * blocks, grain_of(ceil_div(all_rows, slices > 0 ? slices : 1) * g.Wo * taps * kLanes),
               [&](int64_t begin, int64_t end) {
                 for (int64_t item = begin; item < end; ++item) {
                   const int64_t slice = item / blocks, c = channel(item % blocks);
                   const WeightJob<S> job{g, static_cast<const S*>(args.x) + c, static_cast<const S*>(args.grad) + c,
                                          partial + item * block_size, lanes};
                   fill_zero(job.partial, block_size);
                   const int64_t last = (slice + 1) * all_rows / slices;
                   for (int64_t row = slice * all_rows / slices; row < last; row += step)
                     Sum::add(job, row, row + step < last ? row + step : last);
                 }
               });
  S* grad_weight = static_cast<S*>(args.grad_weight);
  A* grad_bias = static_cast<A*>(args.grad_bias);
  for (int64_t block = 0; block < blocks; ++block)
    for (int64_t t = 0; t <= taps; ++t)
      for (int l = 0; l < lanes; ++l) {
        double sum = 0;
        for (int64_t slice = 0; slice < slices; ++slice)
          sum += double(partial[(slice * blocks + block) * block_size + t * kLanes + l]);
        const int64_t c = channel(block) + l;
        if (t < taps)
          grad_weight[c * taps + t] = from_accumulator<S>(A(sum));
        else
          grad_bias[c] = A(sum);
      }
}

// ---- grad_weight, NCHW

// sum[t] += dot(grad, x at offset[t]) for kTaps taps side by side.
template <int kTaps, typename A>
FASTCNN_INLINE void dot_taps(const A* grad, const A* x, const int64_t* offset, int64_t count, double* sum) {
  using V = Vec<A>;
  for (int64_t start = 0; start < count; start += kLevel * V::kLanes) {
    V total[kTaps];
    const int64_t end = start + kLevel * V::kLanes < count ? start + kLevel * V::kLanes : count;
    for (int64_t i = start; i < end; i += V::kLanes) {
      const V v = V::load(grad + i);
#pragma GCC unroll 9
      for (int t = 0; t < kTaps; ++t) total[t] = fma(v, V::load(x + offset[t] + i), total[t]);
    }
    for (int t = 0; t < kTaps; ++t) sum[t] += double(total[t].sum());
  }
}

template <typename S> void backward_weight_nchw(const DepthwiseBackwardArgs& args) {
  using A = Accumulator<S>;
  const ConvGeometry& g = args.geometry;
  const PhasePlane plane(g, kPlaneElements);
  const int64_t taps = g.kH * g.kW, m = g.O / g.C;
  parallel_for(g.O, grain_of(g.N * g.Ho * g.Wo * taps), [&](int64_t begin, int64_t end) {
    const Scratch<A> input(plane.size<A>()), grad(plane.rows * plane.pitch + kSlack<A>);
    const Scratch<int64_t> offset(taps);
    const Scratch<double> sum(taps);
    fill_zero<A>(input, plane.size<A>());
    for (int64_t t = 0; t < taps; ++t) offset[t] = plane.offset(g, t / g.kW, t % g.kW);
    for (int64_t o = begin; o < end; ++o) {
      for (int64_t t = 0; t < taps; ++t) sum[t] = 0;
      double total = 0;
      for (int64_t n = 0; n < g.N; ++n)
        for (int64_t ho = 0; ho < g.Ho; ho += plane.rows) {
          const int64_t rows = g.Ho - ho < plane.rows ? g.Ho - ho : plane.rows, count = rows * plane.pitch;
          plane.load(g, static_cast<const S*>(args.x) + (n * g.C + o / m) * g.H * g.W, ho, rows, input);
          for (int64_t r = 0; r < rows; ++r) {  // in the pitch of x, zero where no output is
            A* row = grad + r * plane.pitch;
            widen_row(static_cast<const S*>(args.grad) + ((n * g.O + o) * g.Ho + ho + r) * g.Wo, row, g.Wo);
            fill_zero(row + g.Wo, plane.pitch - g.Wo);
            VecOf<S> row_total;
            int64_t i = 0;
            for (; i + VecOf<S>::kLanes <= g.Wo; i += VecOf<S>::kLanes) row_total = row_total + VecOf<S>::load(row + i);
            if (i < g.Wo) row_total = row_total + VecOf<S>::load(row + i, int(g.Wo - i));
            total += double(row_total.sum());
          }
          fill_zero<A>(grad + count, kSlack<A>);
          int64_t t = 0;
          for (; t + 9 <= taps; t += 9) dot_taps<9, A>(grad, input, offset + t, count, sum + t);
          for (; t + 5 <= taps; t += 5) dot_taps<5, A>(grad, input, offset + t, count, sum + t);
          for (; t < taps; ++t) dot_taps<1, A>(grad, input, offset + t, count, sum + t);
        }
      for (int64_t t = 0; t < taps; ++t)
        static_cast<S*>(args.grad_weight)[o * taps + t] = from_accumulator<S>(A(sum[t]));
      static_cast<A*>(args.grad_bias)[o] = A(total);
    }
  });
}

}  // namespace

void depthwise_conv2d_backward_input_kernel(const DepthwiseBackwardArgs& args) {
  dispatch_dtype(args.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    if (args.geometry.layout == Layout::kNHWC)
      backward_input_nhwc<S>(args);
    else
      backward_input_nchw<S>(args);
  });
}

void depthwise_conv2d_backward_weight_kernel(const DepthwiseBackwardArgs& args) {
  const ConvGeometry& g = args.geometry;
  dispatch_dtype(args.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    if (g.layout == Layout::kNCHW) return backward_weight_nchw<S>(args);
    if (g.C < VecOf<S>::kLanes) return backward_weight_nhwc<S, GeneralWeight<S, true>>(args);
    if (g.kH == 3 && g.kW == 3) return backward_weight_nhwc<S, UnrolledWeight<S, 3, 3>>(args);
    if (g.kH == 5 && g.kW == 5) return backward_weight_nhwc<S, UnrolledWeight<S, 5, 5>>(args);
    backward_weight_nhwc<S, GeneralWeight<S, false>>(args);
  });
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
