// SPDX-License-Identifier: Apache-2.0
// Squeeze-and-excitation, after the pooling (global_avg_pool.kernel.cpp): two small layers, then the scale.
//
// Forward: x is read twice (pool, scale) and y written once; below the size of the last-level cache the second read comes from it. The layers
// read C * R * 2 weights once per 4 samples. Backward: grad and x are read for the sums of grad * x, grad once more for grad_x, 1 write;
// hidden and scale are computed again from pooled, [N, C] each, instead of being kept.
#include "se_scale.h"

#include "linear.h"
#include "plane_sum.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {
namespace {

// y = x * scale[n, c] (+ offset[n, c])
template <bool kOffset, typename S>
void scale_planes(Layout layout, int64_t N, int64_t C, int64_t HW, const S* x, const Accumulator<S>* scale, const Accumulator<S>* offset, S* y) {
  using V = VecOf<S>;
  if (layout == Layout::kNCHW) {
    parallel_for(N * C, ceil_div(kPlaneGrain, HW), [&](int64_t begin, int64_t end) {
      for (int64_t plane = begin; plane < end; ++plane) {
        const V factor(scale[plane]);
        V add;
        if (kOffset) add = V(offset[plane]);
        over_lanes<V>(HW, [&](int64_t i, auto lanes) {
          const V value = lanes.load(x + plane * HW + i);
          lanes.store(kOffset ? fma(value, factor, add) : value * factor, y + plane * HW + i);
        });
      }
    });
  } else {
    parallel_for(N * HW, ceil_div(kPlaneGrain, C), [&](int64_t begin, int64_t end) {
      for (int64_t pixel = begin; pixel < end; ++pixel) {
        const int64_t row = pixel / HW * C;
        over_lanes<V>(C, [&](int64_t c, auto lanes) {
          const V value = lanes.load(x + pixel * C + c), factor = lanes.load(scale + row + c);
          lanes.store(kOffset ? fma(value, factor, lanes.load(offset + row + c)) : value * factor, y + pixel * C + c);
        });
      }
    });
  }
}

template <typename A> void gates(const SeGateArgs& args) {
  const auto vector = [](const void* p) { return static_cast<const A*>(p); };
  A* hidden = static_cast<A*>(args.hidden);
  A* scale = static_cast<A*>(args.scale);
  linear(vector(args.pooled), vector(args.w1), vector(args.b1), hidden, args.N, args.R, args.C);
  activate(args.activation, hidden, hidden, args.N * args.R);
  linear(hidden, vector(args.w2), vector(args.b2), scale, args.N, args.C, args.R);
  activate(args.gate, scale, scale, args.N * args.C);
}

template <typename S> void backward(const SeScaleBackwardArgs& args) {
  using A = Accumulator<S>;
  const int64_t N = args.N, C = args.C, R = args.R, HW = args.HW;
  const auto vector = [](const void* p) { return static_cast<const A*>(p); };
  const S* x = static_cast<const S*>(args.x);
  const S* grad = static_cast<const S*>(args.grad);
  A* z2 = static_cast<A*>(args.scratch);
  A* scale = z2 + N * C;
  A* grad_z2 = scale + N * C;
  A* grad_pooled = grad_z2 + N * C;
  A* z1 = grad_pooled + N * C;
  A* hidden = z1 + N * R;
  A* grad_z1 = hidden + N * R;

  linear(vector(args.pooled), vector(args.w1), vector(args.b1), z1, N, R, C);
  activate(args.activation, z1, hidden, N * R);
  linear(hidden, vector(args.w2), vector(args.b2), z2, N, C, R);
  activate(args.gate, z2, scale, N * C);

  plane_sums<S>(
      args.layout, N, C, HW, args.sums, [=](auto lanes, int64_t i) { return lanes.load(grad + i) * lanes.load(x + i); },
      [=](int64_t plane, double total) { grad_z2[plane] = A(total); });
  activate_backward(args.gate, z2, grad_z2, N * C);
  linear_backward_weight(grad_z2, hidden, static_cast<A*>(args.grad_w2), static_cast<A*>(args.grad_b2), N, C, R);
  linear_backward_input(grad_z2, vector(args.w2), grad_z1, N, C, R, A(1));
  activate_backward(args.activation, z1, grad_z1, N * R);
  linear_backward_weight(grad_z1, vector(args.pooled), static_cast<A*>(args.grad_w1), static_cast<A*>(args.grad_b1), N, R, C);
  linear_backward_input(grad_z1, vector(args.w1), grad_pooled, N, R, C, A(1.0 / double(HW)));
  scale_planes<true>(args.layout, N, C, HW, grad, scale, grad_pooled, static_cast<S*>(args.grad_x));
}

}  // namespace

void se_gate_forward_kernel(const SeGateArgs& args) {
  dispatch_dtype(args.dtype, [&](auto tag) { gates<Accumulator<typename decltype(tag)::type>>(args); });
}

void se_scale_forward_kernel(const SeScaleArgs& args) {
  dispatch_dtype(args.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    scale_planes<false>(args.layout, args.N, args.C, args.HW, static_cast<const S*>(args.x),
                        static_cast<const Accumulator<S>*>(args.scale), nullptr, static_cast<S*>(args.y));
  });
}

void se_scale_backward_kernel(const SeScaleBackwardArgs& args) {
  dispatch_dtype(args.dtype, [&](auto tag) { backward<typename decltype(tag)::type>(args); });
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
