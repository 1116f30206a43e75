// SPDX-License-Identifier: Apache-2.0
// Global average pooling and its gradient: 1 read an element forward, 1 write backward, [N, C] besides. The sums are plane_sum.h's.
#include "global_avg_pool.h"

#include "../common/dispatch.h"
#include "plane_sum.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {
namespace {

// NCHW: elements between a load and its prefetch. Short planes end in a horizontal sum, which holds up the loads that the hardware's own
// prefetcher would follow; NHWC streams and is slower with it.
constexpr int64_t kPrefetch = 512;

template <typename S> void forward(const GlobalAvgPoolArgs& args) {
  using A = Accumulator<S>;
  const S* x = static_cast<const S*>(args.x);
  S* y = static_cast<S*>(args.y);
  A* wide = static_cast<A*>(args.wide);
  const double share = 1.0 / double(args.HW);
  const auto out = [=](int64_t plane, double total) {
    const A mean = A(total * share);
    if (wide != nullptr) wide[plane] = mean;
    else y[plane] = from_accumulator<S>(mean);
  };
  if (args.layout == Layout::kNCHW) {
    const auto term = [=](auto lanes, int64_t i) {
      __builtin_prefetch(x + i + kPrefetch);
      return lanes.load(x + i);
    };
    plane_sums_nchw<S>(args.N * args.C, args.HW, term, out);
  } else {
    plane_sums_nhwc<S>(args.N, args.C, args.HW, args.scratch, [=](auto lanes, int64_t i) { return lanes.load(x + i); }, out);
  }
}

template <typename S> void backward(const GlobalAvgPoolBackwardArgs& args) {
  using V = VecOf<S>;
  const S* grad = static_cast<const S*>(args.grad);
  S* grad_x = static_cast<S*>(args.grad_x);
  const V share(1.0 / double(args.HW));
  if (args.layout == Layout::kNCHW) {
    parallel_for(args.N * args.C, ceil_div(kPlaneGrain, args.HW), [&](int64_t begin, int64_t end) {
      for (int64_t plane = begin; plane < end; ++plane) {
        const V value = V(to_accumulator(grad[plane])) * share;
        over_lanes<V>(args.HW, [&](int64_t i, auto lanes) { lanes.store(value, grad_x + plane * args.HW + i); });
      }
    });
  } else {
    parallel_for(args.N * args.HW, ceil_div(kPlaneGrain, args.C), [&](int64_t begin, int64_t end) {
      for (int64_t pixel = begin; pixel < end; ++pixel) {
        const S* row = grad + pixel / args.HW * args.C;
        over_lanes<V>(args.C, [&](int64_t c, auto lanes) { lanes.store(lanes.load(row + c) * share, grad_x + pixel * args.C + c); });
      }
    });
  }
}

}  // namespace

void global_avg_pool_forward_kernel(const GlobalAvgPoolArgs& args) {
  dispatch_dtype(args.dtype, [&](auto tag) { forward<typename decltype(tag)::type>(args); });
}

void global_avg_pool_backward_kernel(const GlobalAvgPoolBackwardArgs& args) {
  dispatch_dtype(args.dtype, [&](auto tag) { backward<typename decltype(tag)::type>(args); });
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
