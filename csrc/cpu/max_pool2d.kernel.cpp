// SPDX-License-Identifier: Apache-2.0
// Max pooling and its gradient: x is read once and y written once, no index is stored; backward finds the maxima again.
//
// Forward takes the maximum over the rows of a window first, into a row of accumulators in L1 (kRow of them), then over its columns: kH + kW
// steps an output in place of kH kW. NHWC: a vector is adjacent channels in both. NCHW: adjacent pixels; the second step runs at every column,
// whatever the stride, and a scalar copy picks the strided ones.
// Backward, NHWC: a thread owns rows of grad_x and walks the windows that cover them, 64 channels at a time: kH / stride_h times the
// comparisons, no two threads on one pixel. NCHW: a thread owns planes and takes each window once. Both add the windows up in their order.
// PyTorch's rule decides ties: the first maximum in row order, or the last NaN.
#include "max_pool2d.h"

#include "../common/dispatch.h"
#include "lanes.h"
#include "parallel.h"
#include "scratch.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {
namespace {

constexpr int64_t kGrain = 16384;     // elements of x that are worth a thread
constexpr int64_t kRow = 8192;        // accumulators of a row buffer
constexpr int64_t kChannels = 64;     // NHWC backward: channels that a row of gradients is summed for at once
constexpr float kLowest = -__builtin_inff();

template <typename V> FASTCNN_INLINE V larger(V best, V x) { return select(x <= x, select(x > best, x, best), x); }

// The pixels of a window within x.
struct Span {
  int64_t begin, end;
};
FASTCNN_INLINE Span clipped(int64_t start, int64_t length, int64_t size) {
  return {start > 0 ? start : 0, start + length < size ? start + length : size};
}

// out[i] = the largest of x[i], x[i + step], ..., `rows` of them.
template <typename V, typename S, typename A> FASTCNN_INLINE void column_maxima(const S* x, int64_t step, int64_t rows, int64_t count, A* out) {
  over_lanes<V>(count, [&](int64_t i, auto lanes) {
    V best = lanes.load(x + i);
    for (int64_t h = 1; h < rows; ++h) best = larger(best, lanes.load(x + h * step + i));
    lanes.store(best, out + i);
  });
}

template <typename S> void forward_nhwc(const PoolGeometry& g, const S* x, S* y) {
  using A = Accumulator<S>;
  using V = VecOf<S>;
  const int64_t fit = (kRow / g.C - g.kW) / g.stride_w + 1, outputs = fit < 1 ? 1 : fit < g.Wo ? fit : g.Wo;
  const int64_t columns = (outputs - 1) * g.stride_w + g.kW;
  parallel_for(g.N * g.Ho, ceil_div(kGrain, g.stride_h * g.W * g.C), [&](int64_t begin, int64_t end) {
    const Scratch<A> row(columns * g.C);
    for (int64_t r = begin; r < end; ++r) {
      const int64_t n = r / g.Ho;
      const Span h = clipped((r - n * g.Ho) * g.stride_h - g.pad_top, g.kH, g.H);
      for (int64_t first = 0; first < g.Wo; first += outputs) {
        const int64_t left = first * g.stride_w - g.pad_left;
        const Span w = clipped(left, columns, g.W);
        column_maxima<V>(x + ((n * g.H + h.begin) * g.W + w.begin) * g.C, g.W * g.C, h.end - h.begin, (w.end - w.begin) * g.C, +row);
        for (int64_t ow = first; ow < first + outputs && ow < g.Wo; ++ow) {
          const Span window = clipped(ow * g.stride_w - g.pad_left, g.kW, g.W);
          column_maxima<V>(row + (window.begin - w.begin) * g.C, g.C, window.end - window.begin, g.C, y + (r * g.Wo + ow) * g.C);
        }
      }
    }
  });
}

// Columns that the windows of a row see, in a plane of NCHW; column i is pixel i - pad_left.
FASTCNN_INLINE int64_t padded_columns(const PoolGeometry& g) { return (g.Wo - 1) * g.stride_w + g.kW; }
FASTCNN_INLINE int64_t columns_inside(const PoolGeometry& g) {
  const int64_t seen = padded_columns(g) - g.pad_left;
  return seen < g.W ? seen : g.W;
}

template <typename S> void forward_nchw(const PoolGeometry& g, const S* x, S* y) {
  using A = Accumulator<S>;
  using V = VecOf<S>;
  const int64_t padded = padded_columns(g), starts = padded - g.kW + 1, inside = columns_inside(g);
  parallel_for(g.N * g.C * g.Ho, ceil_div(kGrain, g.stride_h * g.W), [&](int64_t begin, int64_t end) {
    const Scratch<A> row(padded), maxima(starts);
    for (int64_t i = 0; i < padded; ++i) row[i] = A(kLowest);
    for (int64_t r = begin; r < end; ++r) {
      const int64_t plane = r / g.Ho;
      const Span h = clipped((r - plane * g.Ho) * g.stride_h - g.pad_top, g.kH, g.H);
      column_maxima<V>(x + (plane * g.H + h.begin) * g.W, g.W, h.end - h.begin, inside, row + g.pad_left);
      if (g.stride_w == 1) {
        column_maxima<V>(+row, 1, g.kW, g.Wo, y + r * g.Wo);
        continue;
      }
      column_maxima<V>(+row, 1, g.kW, starts, +maxima);
      for (int64_t ow = 1; ow < g.Wo; ++ow) maxima[ow] = maxima[ow * g.stride_w];
      over_lanes<V>(g.Wo, [&](int64_t i, auto lanes) { lanes.store(lanes.load(maxima + i), y + r * g.Wo + i); });
    }
  });
}

// place takes `at` where x becomes the largest so far.
template <typename V> FASTCNN_INLINE void take(V x, V at, V& best, V& place) {
  place = select(x <= x, select(x > best, at, place), at);
  best = larger(best, x);
}

template <typename S> void backward_nhwc(const PoolGeometry& g, const S* grad, const S* x, S* grad_x) {
  using A = Accumulator<S>;
  using V = VecOf<S>;
  parallel_for(g.N * g.H, ceil_div(kGrain, g.W * g.C), [&](int64_t begin, int64_t end) {
    const Scratch<A> sums(g.W * kChannels);
    for (int64_t r = begin; r < end; ++r) {
      const int64_t n = r / g.H, row = r - n * g.H, down = row + g.pad_top;
      const int64_t first = down < g.kH ? 0 : (down - g.kH) / g.stride_h + 1, past = down / g.stride_h + 1;
      for (int64_t base = 0; base < g.C; base += kChannels) {
        const int64_t channels = g.C - base < kChannels ? g.C - base : kChannels;
        for (int64_t i = 0; i < g.W * kChannels; ++i) sums[i] = A(0);
        for (int64_t oh = first; oh < past && oh < g.Ho; ++oh) {
          const Span rows = clipped(oh * g.stride_h - g.pad_top, g.kH, g.H);
          for (int64_t ow = 0; ow < g.Wo; ++ow) {
            const Span columns = clipped(ow * g.stride_w - g.pad_left, g.kW, g.W);
            const S* window = x + n * g.H * g.W * g.C + base;
            over_lanes<V>(channels, [&](int64_t c, auto lanes) {
              // place: 0 in another row than this one, else 1 + the column in the window
              V best(kLowest), place(rows.begin == row ? 1 : 0);
              for (int64_t h = rows.begin; h < rows.end; ++h)
                for (int64_t w = columns.begin; w < columns.end; ++w)
                  take(lanes.load(window + (h * g.W + w) * g.C + c), V(h == row ? int(w - columns.begin) + 1 : 0), best, place);
              const V value = lanes.load(grad + ((n * g.Ho + oh) * g.Wo + ow) * g.C + base + c);
              for (int64_t w = columns.begin; w < columns.end; ++w) {
                const V at(int(w - columns.begin) + 1);
                A* sum = sums + w * kChannels + c;
                lanes.store(lanes.load(sum) + select(place <= at, select(at <= place, value, V(0)), V(0)), sum);
              }
            });
          }
        }
        for (int64_t w = 0; w < g.W; ++w)
          over_lanes<V>(channels, [&](int64_t c, auto lanes) {
            lanes.store(lanes.load(sums + w * kChannels + c), grad_x + (r * g.W + w) * g.C + base + c);
          });
      }
    }
  });
}

template <typename S> void backward_nchw(const PoolGeometry& g, const S* grad, const S* x, S* grad_x) {
  using A = Accumulator<S>;
  using V = VecOf<S>;
  const int64_t padded = padded_columns(g), starts = padded - g.kW + 1, inside = columns_inside(g);
  parallel_for(g.N * g.C, ceil_div(kGrain, g.H * g.W), [&](int64_t begin, int64_t end) {
    const Scratch<A> rows(padded * (g.kH < g.H ? g.kH : g.H)), places(starts), sums(g.H * g.W);
    for (int64_t i = 0; i < padded * (g.kH < g.H ? g.kH : g.H); ++i) rows[i] = A(kLowest);
    for (int64_t plane = begin; plane < end; ++plane) {
      for (int64_t i = 0; i < g.H * g.W; ++i) sums[i] = A(0);
      for (int64_t oh = 0; oh < g.Ho; ++oh) {
        const Span h = clipped(oh * g.stride_h - g.pad_top, g.kH, g.H);
        for (int64_t k = 0; k < h.end - h.begin; ++k)
          column_maxima<V>(x + (plane * g.H + h.begin + k) * g.W, 0, 1, inside, rows + k * padded + g.pad_left);
        over_lanes<V>(starts, [&](int64_t i, auto lanes) {
          V best(kLowest), place(0);
          for (int64_t k = 0; k < h.end - h.begin; ++k)
            for (int64_t w = 0; w < g.kW; ++w) take(lanes.load(rows + k * padded + i + w), V(int(k * g.kW + w)), best, place);
          lanes.store(place, places + i);
        });
        for (int64_t ow = 0; ow < g.Wo; ++ow) {
          const int64_t left = ow * g.stride_w - g.pad_left, place = int64_t(places[ow * g.stride_w]), k = place / g.kW;
          int64_t pixel = (h.begin + k) * g.W + left + place - k * g.kW;
          // nothing larger than -inf: the place is still the window's first, which may lie in the padding
          if (place == 0 && left < 0) pixel = h.begin * g.W;
          sums[pixel] += to_accumulator(grad[(plane * g.Ho + oh) * g.Wo + ow]);
        }
      }
      over_lanes<V>(g.H * g.W, [&](int64_t i, auto lanes) { lanes.store(lanes.load(sums + i), grad_x + plane * g.H * g.W + i); });
    }
  });
}

}  // namespace

void max_pool2d_forward_kernel(const MaxPool2dArgs& args) {
  dispatch_dtype(args.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    const auto run = args.geometry.layout == Layout::kNCHW ? &forward_nchw<S> : &forward_nhwc<S>;
    run(args.geometry, static_cast<const S*>(args.x), static_cast<S*>(args.y));
  });
}

void max_pool2d_backward_kernel(const MaxPool2dBackwardArgs& args) {
  dispatch_dtype(args.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    const auto run = args.geometry.layout == Layout::kNCHW ? &backward_nchw<S> : &backward_nhwc<S>;
    run(args.geometry, static_cast<const S*>(args.grad), static_cast<const S*>(args.x), static_cast<S*>(args.grad_x));
  });
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
