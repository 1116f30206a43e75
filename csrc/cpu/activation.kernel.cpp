// SPDX-License-Identifier: Apache-2.0
// Elementwise activation, forward and backward, over dense memory of any rank and format.
//
// One pass: 1 read and 1 write an element (backward 2 and 1), so the roof is memory bandwidth; a range of kGrain elements is what a thread
// takes at least, below it the fork costs more than the work.
#include "activation.h"

#include "../common/dispatch.h"
#include "../common/shape.h"
#include "lanes.h"
#include "parallel.h"
#include "stream.h"
#include "unroll.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {
namespace {

constexpr int64_t kBlock = 1024;  // elements, whole lines: no line has two writers
constexpr int64_t kGrain = 32 * kBlock;
constexpr int kUnroll = 4;  // vectors: their exponentials and divisions overlap

// kUnroll loads, then as many stores: mixed, they measured a quarter slower from L2.
template <typename S, typename F> void forward(const S* x, S* y, int64_t count, bool streams, F functor) {
  using V = VecOf<S>;
  int64_t i = 0;
  for (; i + kUnroll * V::kLanes <= count; i += kUnroll * V::kLanes) {
    V v[kUnroll];
    unroll<kUnroll>([&](auto u) FASTCNN_UNROLLED { v[u] = functor(V::load(x + i + u * V::kLanes)); });
    unroll<kUnroll>([&](auto u) FASTCNN_UNROLLED {
      if (streams) stream(v[u], y + i + u * V::kLanes);
      else v[u].store(y + i + u * V::kLanes);
    });
  }
  over_lanes<V>(count - i, [&](int64_t k, auto lanes) { lanes.store(functor(lanes.load(x + i + k)), y + i + k); });
  if (streams) stream_fence();
}

template <typename S, typename F> void backward(const S* grad, const S* x, S* y, int64_t count, F functor) {
  over_lanes<VecOf<S>>(count, [&](int64_t i, auto lanes) {
    lanes.store(lanes.load(grad + i) * functor.derivative(lanes.load(x + i)), y + i);
  });
}

template <typename S, typename F> void run(const ActivationArgs& args, F functor) {
  const S* x = static_cast<const S*>(args.x);
  const S* grad = static_cast<const S*>(args.grad);
  S* y = static_cast<S*>(args.y);
  const bool streams = grad == nullptr && is_streamed(y, kBlock * int64_t(sizeof(S)), args.count / kBlock);
  parallel_for(ceil_div(args.count, kBlock), kGrain / kBlock, [&](int64_t first, int64_t last) {
    const int64_t begin = first * kBlock, end = last * kBlock < args.count ? last * kBlock : args.count;
    if (grad == nullptr) forward(x + begin, y + begin, end - begin, streams, functor);
    else backward(grad + begin, x + begin, y + begin, end - begin, functor);
  });
}

}  // namespace

void activation_kernel(const ActivationArgs& args) {
  dispatch_dtype(args.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    dispatch_activation(args.kind, [&](auto functor) { run<S>(args, functor); });
  });
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
