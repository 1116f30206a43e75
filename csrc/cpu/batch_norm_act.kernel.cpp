// SPDX-License-Identifier: Apache-2.0
// Batch norm + residual + activation, forward: apply, fold, statistics.
//
// Apply is one pass, 1 read (2 with a residual) and 1 write an element: memory bandwidth is the roof. NCHW walks planes with scale and shift in
// registers; NHWC walks pixels and reads the two vectors from L1 beside each vector of x, so that x and y stream in address order.
//
// Statistics are one pass, 1 read an element (a segment's first chunk is read twice, the second time from cache). A chunk (kChunkRows pixels of
// NHWC, kChunkPixels of NCHW) sums d and d^2 of d = x - center in float, where center is the first chunk's own mean, then the mean so far; chunks
// and segments are merged in double (Chan et al.). A centre that is off by D costs D^2 of cancellation in a chunk's sum of squares, but then the
// merged variance holds a share of D^2 itself, so the relative error stays at float's rounding even with |mean| >> std.
#include "batch_norm_act.h"

#include "../common/dispatch.h"
#include "any_activation.h"
#include "lanes.h"
#include "parallel.h"
#include "scratch.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {
namespace {

constexpr int64_t kGrain = 32768;        // elements that are worth a thread
constexpr int64_t kChunkPixels = 4096;   // NCHW: 16 KB of float, a third of L1
constexpr int64_t kChunkRows = 128;      // NHWC: float sums of 128 values lose nothing that matters
constexpr int kUnroll = 4;               // NCHW: vectors at a time
constexpr int kRowGroup = 8;             // NHWC rows that share one load and store of the sums, in two chains

template <typename S, typename F> void apply_nchw(const BatchNormActArgs& args, F functor) {
  using A = Accumulator<S>;
  using V = VecOf<S>;
  const S* residual = static_cast<const S*>(args.residual);
  parallel_for(args.N * args.C, ceil_div(kGrain, args.HW), [&](int64_t begin, int64_t end) {
    int64_t c = begin % args.C;
    for (int64_t plane = begin; plane < end; ++plane) {
      const S* x = static_cast<const S*>(args.x) + plane * args.HW;
      S* y = static_cast<S*>(args.y) + plane * args.HW;
      const V scale(static_cast<const A*>(args.scale)[c]), shift(static_cast<const A*>(args.shift)[c]);
      if (residual == nullptr) {
        over_lanes_unrolled<V, kUnroll>(args.HW, [&](int64_t i, auto lanes, int) {
          lanes.store(functor(fma(lanes.load(x + i), scale, shift)), y + i);
        });
      } else {
        const S* r = residual + plane * args.HW;
        over_lanes<V>(args.HW, [&](int64_t i, auto lanes) {
          lanes.store(functor(fma(lanes.load(x + i), scale, shift) + lanes.load(r + i)), y + i);
        });
      }
      if (++c == args.C) c = 0;
    }
  });
}

// Rows of few channels are joined until whole vectors fill them: a row of 24 floats is one and a half of AVX-512.
// Scale and shift then repeat along the joined row.
template <typename A> struct Period {
  int64_t pixels;  // of a joined row
  Scratch<A> scale, shift;

  explicit Period(const BatchNormActArgs& args, int64_t pixels_)
      : pixels(pixels_), scale(pixels_ * args.C), shift(pixels_ * args.C) {
    for (int64_t i = 0; i < pixels * args.C; ++i) {
      scale[i] = static_cast<const A*>(args.scale)[i % args.C];
      shift[i] = static_cast<const A*>(args.shift)[i % args.C];
    }
  }
};

// The fewest pixels whose channels fill whole vectors, and enough of those to hide the loop; 1 where a tail costs little.
template <typename V> int64_t joined_pixels(int64_t C) {
  constexpr int64_t kEnough = 4 * V::kLanes, kMost = 16 * V::kLanes;
  int64_t pixels = 1;
  while (C * pixels < kEnough || C * pixels % V::kLanes != 0) {
    if (C * ++pixels > kMost) return 1;
  }
  return pixels;
}

template <typename S, typename F> void apply_nhwc(const BatchNormActArgs& args, F functor) {
  using A = Accumulator<S>;
  using V = VecOf<S>;
  const S* residual = static_cast<const S*>(args.residual);
  // rows of `channels` from the pixel `first` on
  const auto rows = [&](int64_t first, int64_t count, int64_t channels, const A* scale, const A* shift) {
    for (int64_t row = 0; row < count; ++row) {
      const int64_t at = first * args.C + row * channels;
      const S* x = static_cast<const S*>(args.x) + at;
      S* y = static_cast<S*>(args.y) + at;
      if (residual == nullptr) {
        over_lanes<V>(channels, [&](int64_t c, auto lanes) {
          lanes.store(functor(fma(lanes.load(x + c), lanes.load(scale + c), lanes.load(shift + c))), y + c);
        });
      } else {
        const S* r = residual + at;
        over_lanes<V>(channels, [&](int64_t c, auto lanes) {
          lanes.store(functor(fma(lanes.load(x + c), lanes.load(scale + c), lanes.load(shift + c)) + lanes.load(r + c)), y + c);
        });
      }
    }
  };
  const Period<A> period(args, joined_pixels<V>(args.C));
  parallel_for(args.N * args.HW, ceil_div(kGrain, args.C), [&](int64_t begin, int64_t end) {
    const int64_t joined = (end - begin) / period.pixels, whole = begin + joined * period.pixels;
    rows(begin, joined, period.pixels * args.C, period.scale, period.shift);
    rows(whole, end - whole, args.C, period.scale, period.shift);
  });
}

// Mean and sum of squared deviations of one channel over `count` values, merged from parts.
struct Moments {
  double mean, m2;
};

// Merges a part of n values with the given sums of x - center and (x - center)^2 into one of `before` values.
FASTCNN_INLINE Moments merge(Moments old, double before, double center, double sum, double squares, double n) {
  const double deviation = sum / n;
  const double delta = center + deviation - old.mean;
  const double share = n / (before + n);
  return {old.mean + delta * share, old.m2 + (squares - sum * deviation) + delta * delta * before * share};
}

template <typename S> struct ChannelSums {  // of one NCHW channel over the pixels [begin, end) of the flattened N * HW
  using A = Accumulator<S>;
  using V = VecOf<S>;
  const S* x;  // the channel in the first sample
  int64_t HW, sample_stride;

  template <bool kSquares> FASTCNN_INLINE void operator()(int64_t begin, int64_t end, A center, A* sum, A* squares) const {
    constexpr int kSlots = 4;
    const V c(center);
    V s[kSlots], q[kSlots];
    int64_t n = begin / HW, offset = begin - n * HW;
    for (int64_t left = end - begin; left > 0; ++n) {
      const int64_t count = HW - offset < left ? HW - offset : left;
      const S* row = x + n * sample_stride + offset;
      over_lanes_unrolled<V, kSlots>(count, [&](int64_t i, auto lanes, int slot) {
        const V d = lanes.keep(lanes.load(row + i) - c);
        s[slot] = s[slot] + d;
        if (kSquares) q[slot] = fma(d, d, q[slot]);
      });
      left -= count;
      offset = 0;
    }
    *sum = ((s[0] + s[1]) + (s[2] + s[3])).sum();
    if (kSquares) *squares = ((q[0] + q[1]) + (q[2] + q[3])).sum();
  }
};

template <typename S> Moments channel_moments(const ChannelSums<S>& sums, int64_t begin, int64_t end) {
  using A = Accumulator<S>;
  Moments total{0, 0};
  for (int64_t p = begin; p < end; p += kChunkPixels) {
    const int64_t stop = p + kChunkPixels < end ? p + kChunkPixels : end;
    const double n = double(stop - p);
    A sum = 0, squares = 0;
    if (p == begin) {
      sums.template operator()<false>(p, stop, A(0), &sum, nullptr);
      total.mean = sum / n;
    }
    const A center = A(total.mean);
    sums.template operator()<true>(p, stop, center, &sum, &squares);
    total = merge(total, double(p - begin), center, sum, squares, n);
  }
  return total;
}

// The moments of all channels over the pixels [begin, end) of NHWC. scratch: 3 * C accumulators.
template <typename S>
void pixel_moments(const S* x, int64_t C, int64_t begin, int64_t end, double* mean, double* m2, Accumulator<S>* scratch) {
  using A = Accumulator<S>;
  using V = VecOf<S>;
  A* center = scratch;
  A* sum = scratch + C;
  A* squares = scratch + 2 * C;
  const auto rows_sum = [&](const S* rows, int64_t first, int64_t last, auto group, auto with_squares) {
    for (; first + group.value <= last; first += group.value) {
      const S* row = rows + first * C;
      over_lanes<V>(C, [&](int64_t c, auto lanes) {
        const V middle = lanes.load(center + c);
        V s[2], q[2];
        for (int r = 0; r < group.value; ++r) {
          const V d = lanes.load(row + r * C + c) - middle;
          s[r % 2] = s[r % 2] + d;
          if (with_squares.value) q[r % 2] = fma(d, d, q[r % 2]);
        }
        lanes.store(lanes.load(sum + c) + (s[0] + s[1]), sum + c);
        if (with_squares.value) lanes.store(lanes.load(squares + c) + (q[0] + q[1]), squares + c);
      });
    }
    return first;
  };
  const auto chunk_sum = [&](int64_t first, int64_t last, auto with_squares) {
    for (int64_t c = 0; c < C; ++c) sum[c] = squares[c] = A(0);
    first = rows_sum(x, first, last, std::integral_constant<int, kRowGroup>{}, with_squares);
    rows_sum(x, first, last, std::integral_constant<int, 1>{}, with_squares);
  };
  for (int64_t p = begin; p < end; p += kChunkRows) {
    const int64_t stop = p + kChunkRows < end ? p + kChunkRows : end;
    const double n = double(stop - p);
    if (p == begin) {
      for (int64_t c = 0; c < C; ++c) center[c] = A(0), m2[c] = 0;
      chunk_sum(p, stop, std::false_type{});
      for (int64_t c = 0; c < C; ++c) mean[c] = sum[c] / n;
    }
    for (int64_t c = 0; c < C; ++c) center[c] = A(mean[c]);
    chunk_sum(p, stop, std::true_type{});
    for (int64_t c = 0; c < C; ++c) {
      const Moments merged = merge({mean[c], m2[c]}, double(p - begin), center[c], sum[c], squares[c], n);
      mean[c] = merged.mean, m2[c] = merged.m2;
    }
  }
}

template <typename S> void statistics(const BatchNormStatisticsArgs& args) {
  using A = Accumulator<S>;
  const int64_t C = args.C, pixels = args.N * args.HW;
  const int64_t segments = batch_norm_segments(args.N, C, args.HW);
  const int64_t length = pixels > 0 ? ceil_div(pixels, segments) : 1;
  const S* x = static_cast<const S*>(args.x);
  const auto stop_of = [&](int64_t segment) { return (segment + 1) * length < pixels ? (segment + 1) * length : pixels; };
  const auto part = [&](int64_t segment) { return args.scratch + segment * kBatchNormRows * C; };
  if (args.layout == Layout::kNCHW) {
    parallel_for(segments * C, ceil_div(kGrain, length), [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t segment = item / C, c = item - segment * C;
        const ChannelSums<S> sums{x + c * args.HW, args.HW, C * args.HW};
        const Moments found = channel_moments(sums, segment * length, stop_of(segment));
        part(segment)[c] = found.mean, part(segment)[C + c] = found.m2;
      }
    });
  } else {
    parallel_for(segments, 1, [&](int64_t begin, int64_t end) {
      for (int64_t segment = begin; segment < end; ++segment) {
        double* own = part(segment);
        pixel_moments(x, C, segment * length, stop_of(segment), own, own + C, reinterpret_cast<A*>(own + 2 * C));
      }
    });
  }
  double* mean = part(0);
  double* m2 = mean + C;
  for (int64_t segment = 1; segment * length < pixels; ++segment) {
    const double n = double(stop_of(segment) - segment * length);
    const double* other = part(segment);
    for (int64_t c = 0; c < C; ++c) {
      const Moments merged = merge({mean[c], m2[c]}, double(segment * length), other[c], 0.0, other[C + c], n);
      mean[c] = merged.mean, m2[c] = merged.m2;
    }
  }
  const double biased = 1.0 / double(pixels > 0 ? pixels : 1), unbiased = 1.0 / double(pixels > 1 ? pixels - 1 : 1);
  for (int64_t c = 0; c < C; ++c) {
    static_cast<A*>(args.mean)[c] = A(mean[c]);
    static_cast<A*>(args.invstd)[c] = A(1.0 / __builtin_sqrt(m2[c] * biased + args.eps));
  }
  if (args.running_mean == nullptr) return;
  const auto move = [&](const void* from, void* to, const double* target, double factor) {
    for (int64_t c = 0; c < C; ++c) {
      const double old = static_cast<const A*>(from)[c];
      static_cast<A*>(to)[c] = A(old + args.momentum * (target[c] * factor - old));
    }
  };
  move(args.running_mean, args.new_mean, mean, 1.0);
  move(args.running_var, args.new_var, m2, unbiased);
}

}  // namespace

void batch_norm_act_forward_kernel(const BatchNormActArgs& args) {
  dispatch_dtype(args.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    dispatch_usual_activation(args.activation, [&](auto functor) {
      if (args.layout == Layout::kNCHW) apply_nchw<S>(args, functor);
      else apply_nhwc<S>(args, functor);
    });
  });
}

void batch_norm_fold_kernel(const BatchNormFoldArgs& args) {
  const auto fold = [&](auto zero) {
    using A = decltype(zero);
    const A* weight = static_cast<const A*>(args.weight);
    const A* bias = static_cast<const A*>(args.bias);
    const A* mean = static_cast<const A*>(args.mean);
    const A* variance = static_cast<const A*>(args.variance);
    const A* invstd = static_cast<const A*>(args.invstd);
    A* scale = static_cast<A*>(args.scale);
    A* shift = static_cast<A*>(args.shift);
    for (int64_t c = 0; c < args.C; ++c) {
      double factor = variance == nullptr ? double(invstd[c]) : 1.0 / __builtin_sqrt(double(variance[c]) + args.eps);
      if (weight != nullptr) factor *= double(weight[c]);
      scale[c] = A(factor);
      // with the rounded scale, so that its rounding error multiplies x - mean and not x
      shift[c] = A((bias == nullptr ? 0.0 : double(bias[c])) - double(mean[c]) * double(scale[c]));
    }
  };
  if (args.dtype == Dtype::kFloat64) fold(double(0));
  else fold(float(0));
}

void batch_norm_statistics_kernel(const BatchNormStatisticsArgs& args) {
  dispatch_dtype(args.dtype, [&](auto tag) { statistics<typename decltype(tag)::type>(args); });
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
