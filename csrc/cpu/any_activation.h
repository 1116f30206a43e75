// SPDX-License-Identifier: Apache-2.0
// An activation chosen by a switch for every vector, out of line. The kernels compile their loops for the activations
// that networks put behind a batch norm; the rest share one copy of the loop, which the build pays for once.
#pragma once

#include "../common/epilogue.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {

struct AnyActivation {
  Activation kind;

  template <typename V> __attribute__((noinline)) V operator()(V x) const {
    V y = x;
    dispatch_activation(kind, [&](auto functor) { y = functor(x); });
    return y;
  }
  template <typename V> __attribute__((noinline)) V derivative(V x) const {
    V slope = x;
    dispatch_activation(kind, [&](auto functor) { slope = functor.derivative(x); });
    return slope;
  }
};

// dispatch_activation, with AnyActivation for those that follow no batch norm in any network of the collection.
template <typename F> FASTCNN_HOST_INLINE void dispatch_usual_activation(Activation kind, F&& f) {
  switch (kind) {
    case Activation::kIdentity: return f(Identity{});
    case Activation::kRelu: return f(Relu{});
    case Activation::kRelu6: return f(Relu6{});
    case Activation::kHardSwish: return f(HardSwish{});
    case Activation::kSilu: return f(Silu{});
    case Activation::kHardSigmoid:
    case Activation::kSigmoid: return f(AnyActivation{kind});
  }
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
