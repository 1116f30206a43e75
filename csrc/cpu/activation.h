// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "../common/epilogue.h"
#include "isa.h"

namespace fastcnn {

// y = act(x), or y = grad * act'(x) when grad is given, over `count` dense elements.
struct ActivationArgs {
  Dtype dtype;
  Activation kind;
  const void* x;
  const void* grad;
  void* y;
  int64_t count;
};

}  // namespace fastcnn

FASTCNN_KERNEL(activation_kernel, ActivationArgs)
