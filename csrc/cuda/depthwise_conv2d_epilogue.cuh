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

}  // namespace fastcnn
