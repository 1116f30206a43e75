// SPDX-License-Identifier: Apache-2.0
// Batch norm + residual + activation, backward. With xhat = (x - mean) * invstd and gz = grad * act'(x * scale + shift + residual):
//   grad_bias = sum gz,  grad_weight = sum gz * xhat,  grad_residual = gz,
//   grad_x = scale * gz                                                        (eval)
//   grad_x = scale * (gz - mean(gz) - xhat * mean(gz * xhat))                  (training)
//
// Two passes: the sums, 2 reads an element (3 with a residual), skipped in eval when no vector wants a gradient; then grad_x and grad_residual,
// 2 or 3 reads and 1 or 2 writes. z and gz are formed again in the second pass: exp costs less than a write and a read of gz.
// Sums run in float over a chunk and in double over chunks and segments, split by shape alone.
#include "../common/dispatch.h"
#include "any_activation.h"
#include "batch_norm_act.h"
#include "lanes.h"
#include "parallel.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {
namespace {

constexpr int64_t kGrain = 32768;
constexpr int64_t kChunkPixels = 4096;
constexpr int64_t kChunkRows = 128;
constexpr int kRowGroup = 4;

template <typename S, typename F> struct Backward {
  using A = Accumulator<S>;
  using V = VecOf<S>;
  const BatchNormActBackwardArgs& args;
  F functor;
  int64_t C, HW, pixels, segments, length;
  const S *grad, *x, *residual;
  const A *scale, *shift, *mean;

  Backward(const BatchNormActBackwardArgs& a, F f)
      : args(a), functor(f), C(a.C), HW(a.HW), pixels(a.N * a.HW), segments(batch_norm_segments(a.N, a.C, a.HW)),
        length(pixels > 0 ? ceil_div(pixels, segments) : 1), grad(static_cast<const S*>(a.grad)), x(static_cast<const S*>(a.x)),
        residual(static_cast<const S*>(a.residual)), scale(static_cast<const A*>(a.scale)), shift(static_cast<const A*>(a.shift)),
        mean(static_cast<const A*>(a.mean)) {}

  // Of a segment: sum of gz, sum of gz * (x - mean), then room for three more vectors.
  double* part(int64_t segment) const { return args.scratch + segment * kBatchNormRows * C; }
  int64_t stop_of(int64_t segment) const { return (segment + 1) * length < pixels ? (segment + 1) * length : pixels; }

  template <typename Lanes> FASTCNN_INLINE V gradient_of_z(const Lanes& lanes, int64_t i, V value, V factor, V offset) const {
    V z = fma(value, factor, offset);
    if (residual != nullptr) z = z + lanes.load(residual + i);
    return lanes.load(grad + i) * functor.derivative(z);
  }

  void sum_channel(int64_t c, int64_t begin, int64_t end, double* sum, double* product) const {
    constexpr int kSlots = 2;
    const V factor(scale[c]), offset(shift[c]), middle(mean[c]);
    *sum = *product = 0;
    int64_t n = pixels > 0 ? begin / HW : 0, inside = begin - n * HW;
    for (int64_t p = begin; p < end;) {
      const int64_t chunk = p + kChunkPixels < end ? p + kChunkPixels : end;
      V s[kSlots], q[kSlots];
      while (p < chunk) {
        const int64_t count = HW - inside < chunk - p ? HW - inside : chunk - p;
        const int64_t start = (n * C + c) * HW + inside;
        over_lanes_unrolled<V, kSlots>(count, [&](int64_t i, auto lanes, int slot) {
          const V value = lanes.load(x + start + i);
          const V gz = lanes.keep(gradient_of_z(lanes, start + i, value, factor, offset));
          s[slot] = s[slot] + gz;
          q[slot] = fma(gz, lanes.keep(value - middle), q[slot]);
        });
        p += count;
        inside += count;
        if (inside == HW) ++n, inside = 0;
      }
      *sum += double((s[0] + s[1]).sum());
      *product += double((q[0] + q[1]).sum());
    }
  }

  template <int kRows> int64_t sum_rows(int64_t first, int64_t last, A* sum, A* product) const {
    for (; first + kRows <= last; first += kRows) {
      over_lanes<V>(C, [&](int64_t c, auto lanes) {
        const V factor = lanes.load(scale + c), offset = lanes.load(shift + c), middle = lanes.load(mean + c);
        V s = lanes.load(sum + c), q = lanes.load(product + c);
        for (int r = 0; r < kRows; ++r) {
          const int64_t i = (first + r) * C + c;
          const V value = lanes.load(x + i);
          const V gz = gradient_of_z(lanes, i, value, factor, offset);
          s = s + gz;
          q = fma(gz, value - middle, q);
        }
        lanes.store(s, sum + c);
        lanes.store(q, product + c);
      });
    }
    return first;
  }

  void sum_pixels(int64_t segment) const {
    double* total = part(segment);
    A* sum = reinterpret_cast<A*>(total + 2 * C);
    A* product = sum + C;
    for (int64_t c = 0; c < 2 * C; ++c) total[c] = 0;
    const int64_t end = stop_of(segment);
    for (int64_t p = segment * length; p < end; p += kChunkRows) {
      const int64_t stop = p + kChunkRows < end ? p + kChunkRows : end;
      for (int64_t c = 0; c < 2 * C; ++c) sum[c] = A(0);
      sum_rows<1>(sum_rows<kRowGroup>(p, stop, sum, product), stop, sum, product);
      for (int64_t c = 0; c < 2 * C; ++c) total[c] += double(sum[c]);
    }
  }

  void sums() const {
    if (args.layout == Layout::kNCHW) {
      parallel_for(segments * C, ceil_div(kGrain, length), [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; ++item) {
          const int64_t segment = item / C, c = item - segment * C;
          sum_channel(c, segment * length, stop_of(segment), part(segment) + c, part(segment) + C + c);
        }
      });
    } else {
      parallel_for(segments, 1, [&](int64_t begin, int64_t end) {
        for (int64_t segment = begin; segment < end; ++segment) sum_pixels(segment);
      });
    }
    double* total = part(0);
    for (int64_t segment = 1; segment < segments; ++segment)
      for (int64_t c = 0; c < 2 * C; ++c) total[c] += part(segment)[c];
    // grad_x = scale * gz - constant - slope * (x - mean)
    A* constant = reinterpret_cast<A*>(total + 2 * C);
    A* slope = constant + C;
    const double share = 1.0 / double(pixels > 0 ? pixels : 1);
    for (int64_t c = 0; c < C; ++c) {
      const double inverse = static_cast<const A*>(args.invstd)[c];
      if (args.grad_bias != nullptr) static_cast<A*>(args.grad_bias)[c] = A(total[c]);
      if (args.grad_weight != nullptr) static_cast<A*>(args.grad_weight)[c] = A(total[C + c] * inverse);
      constant[c] = A(scale[c] * total[c] * share);
      slope[c] = A(scale[c] * inverse * inverse * total[C + c] * share);
    }
  }

  struct Coefficients {
    V factor, offset, middle, constant, slope;
  };

  template <typename Lanes> FASTCNN_INLINE void write(const Lanes& lanes, int64_t i, const Coefficients& k) const {
    const V value = lanes.load(x + i);
    const V gz = gradient_of_z(lanes, i, value, k.factor, k.offset);
    if (args.grad_residual != nullptr) lanes.store(gz, static_cast<S*>(args.grad_residual) + i);
    if (args.grad_x == nullptr) return;
    V result = gz * k.factor;
    if (args.training) result = result - fma(value - k.middle, k.slope, k.constant);
    lanes.store(result, static_cast<S*>(args.grad_x) + i);
  }

  void images() const {
    const A* constant = reinterpret_cast<const A*>(part(0) + 2 * C);  // read in training only
    const A* slope = constant + C;
    if (args.layout == Layout::kNCHW) {
      parallel_for(args.N * C, ceil_div(kGrain, HW), [&](int64_t begin, int64_t end) {
        int64_t c = begin % C;
        for (int64_t plane = begin; plane < end; ++plane) {
          Coefficients k{V(scale[c]), V(shift[c]), V(mean[c]), V(), V()};
          if (args.training) k.constant = V(constant[c]), k.slope = V(slope[c]);
          over_lanes<V>(HW, [&](int64_t i, auto lanes) { write(lanes, plane * HW + i, k); });
          if (++c == C) c = 0;
        }
      });
    } else {
      parallel_for(pixels, ceil_div(kGrain, C), [&](int64_t begin, int64_t end) {
        for (int64_t pixel = begin; pixel < end; ++pixel) {
          over_lanes<V>(C, [&](int64_t c, auto lanes) {
            Coefficients k{lanes.load(scale + c), lanes.load(shift + c), lanes.load(mean + c), V(), V()};
            if (args.training) k.constant = lanes.load(constant + c), k.slope = lanes.load(slope + c);
            write(lanes, pixel * C + c, k);
          });
        }
      });
    }
  }
};

}  // namespace

void batch_norm_act_backward_kernel(const BatchNormActBackwardArgs& args) {
  dispatch_dtype(args.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    dispatch_usual_activation(args.activation, [&](auto functor) {
      const Backward<S, decltype(functor)> backward(args, functor);
      if (args.grad_weight != nullptr || args.grad_bias != nullptr || (args.training && args.grad_x != nullptr)) backward.sums();
      if (args.N * args.C * args.HW > 0 && (args.grad_x != nullptr || args.grad_residual != nullptr)) backward.images();
    });
  });
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
