// SPDX-License-Identifier: Apache-2.0
// What the depthwise forward kernels do with a sum, chosen when they are compiled.
#pragma once

#include "epilogue.cuh"

namespace fastcnn {

enum class DepthwiseEpilogue : int {
  kGeneral,   // any activation, a residual
  kPlain,     // the activation is a pair of bounds, no residual
  kGradient,  // grad * act'(z) in place of act(z): the gradient of what goes into the activation
  kSums,      // kGeneral, and the sums of the results over each tile beside them
};

// grad * act'(z) in place of z.
template <typename A, int kCount>
__device__ __forceinline__ void through_activation(Activation kind, const A (&grad)[kCount], A (&z)[kCount]) {
  const auto all = [&](auto function) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) z[i] = grad[i] * function.derivative(z[i]);
  };
  switch (kind) {
    case Activation::kIdentity: return all(Identity());
    case Activation::kRelu: return all(Relu());
    case Activation::kRelu6: return all(Relu6());
    case Activation::kHardSwish: return all(HardSwish());
    case Activation::kHardSigmoid: return all(HardSigmoid());
    case Activation::kSilu: return all(Silu());
    case Activation::kSigmoid: return all(Sigmoid());
  }
}

}  // namespace fastcnn
