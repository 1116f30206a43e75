// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "../common/epilogue.h"
#include "../common/shape.h"
#include "isa.h"

namespace fastcnn {

// y[n, o] = act(conv(x[n, o / m], weight[o]) * scale[o] + shift[o] + residual[n, o]), m = O / C. A bias is a shift
// without a scale.
struct DepthwiseArgs {
  Dtype dtype;
  ConvGeometry geometry;  // C divides O (NHWC: C = O); paddings may be negative (they crop)
  Activation activation;
  bool flip;  // convolve with the kernel turned by 180 degrees: the gradient of a convolution of stride 1 (needs m = 1)
  const void* x;         // [N, C, H, W], dense in geometry.layout, as are residual and y
  const void* weight;    // [O, 1, kH, kW], contiguous
  const void* scale;     // [O] in the accumulator's type, or null
  const void* shift;     // [O] in the accumulator's type, or null
  const void* residual;  // [N, O, Ho, Wo], or null
  void* y;               // [N, O, Ho, Wo]
};

// Gradients of z = conv(x, weight); a null output is not computed.
struct DepthwiseBackwardArgs {
  Dtype dtype;
  ConvGeometry geometry;  // of the forward convolution
  const void* grad;       // [N, O, Ho, Wo], dense in geometry.layout, as are x and grad_x
  const void* x;
  const void* weight;  // [O, 1, kH, kW], contiguous, as is grad_weight
  void* grad_x;
  void* grad_weight;
  void* grad_bias;  // [O], the sum of grad, in the accumulator's type; only beside grad_weight
};

}  // namespace fastcnn

FASTCNN_KERNEL(depthwise_conv2d_kernel, DepthwiseArgs)
FASTCNN_KERNEL(depthwise_conv2d_backward_input_kernel, DepthwiseBackwardArgs)
FASTCNN_KERNEL(depthwise_conv2d_backward_weight_kernel, DepthwiseBackwardArgs)
