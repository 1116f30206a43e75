// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "../common/shape.h"
#include "isa.h"

namespace fastcnn {

struct MaxPool2dArgs {
  Dtype dtype;
  PoolGeometry geometry;
  const void* x;
  void* y;
};

// grad_x = the sum of grad over the windows whose first maximum (last NaN, where there is one) the pixel is.
struct MaxPool2dBackwardArgs {
  Dtype dtype;
  PoolGeometry geometry;
  const void* grad;
  const void* x;
  void* grad_x;
};

}  // namespace fastcnn

FASTCNN_KERNEL(max_pool2d_forward_kernel, MaxPool2dArgs)
FASTCNN_KERNEL(max_pool2d_backward_kernel, MaxPool2dBackwardArgs)
