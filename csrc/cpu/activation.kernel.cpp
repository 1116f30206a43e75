// SPDX-License-Identifier: Apache-2.0
// Elementwise activation, forward and backward, over dense memory of any rank and format.
//
// One pass: 1 read and 1 write an element (backward 2 and 1), so the roof is memory bandwidth; a range of kGrain elements is what a thread
// takes at least, below it the fork costs more than the work.
#include "activation.h"

#include "../common/dispatch.h"
#include "../common/shape.h"
#include "parallel.h"
#include "simd.h"
#include "stream.h"
#include "unroll.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {
namespace {

constexpr int64_t kBlock = 1024;  // elements, whole lines: no line has two writers
constexpr int64_t kGrain = 32 * kBlock;
constexpr int kUnroll = 4;  // vectors: their exponentials and divisions overlap

template <typename S, typename F> void run(const ActivationArgs& args, F functor) {
  using V = VecOf<S>;
  const S* x = static_cast<const S*>(args.x);
  const S* grad = static_cast<const S*>(args.grad);
  S* y = static_cast<S*>(args.y);
  const bool streams = grad == nullptr && is_streamed(y, kBlock * int64_t(sizeof(S)), args.count / kBlock);
  parallel_for(ceil_div(args.count, kBlock), kGrain / kBlock, [&](int64_t first, int64_t last) {
    int64_t i = first * kBlock;
    const int64_t end = last * kBlock < args.count ? last * kBlock : args.count;
    if (grad == nullptr) {
      for (; i + kUnroll * V::kLanes <= end; i += kUnroll * V::kLanes)
        unroll<kUnroll>([&](auto u) FASTCNN_UNROLLED {
          const V v = functor(V::load(x + i + u * V::kLanes));
          if (streams) stream(v, y + i + u * V::kLanes);
          else v.store(y + i + u * V::kLanes);
        });
      for (; i + V::kLanes <= end; i += V::kLanes) functor(V::load(x + i)).store(y + i);
      if (i < end) functor(V::load(x + i, int(end - i))).store(y + i, int(end - i));
      if (streams) stream_fence();
    } else {
      for (; i + V::kLanes <= end; i += V::kLanes) (V::load(grad + i) * functor.derivative(V::load(x + i))).store(y + i);
      if (i < end) {
        const int n = int(end - i);
        (V::load(grad + i, n) * functor.derivative(V::load(x + i, n))).store(y + i, n);
      }
    }
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
