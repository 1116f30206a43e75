// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "../common/epilogue.h"
#include "../common/shape.h"
#include "isa.h"

namespace fastcnn {

// What a pointwise convolution makes of x as it reads it: act(x * scale[c] + shift[c]) * gate[n, c], all in the
// accumulator type.
struct Prologue {
  Activation activation = Activation::kIdentity;
  const void* scale = nullptr;  // null: neither scale nor shift
  const void* shift = nullptr;
  const void* gate = nullptr;   // null: 1
};

// 1x1 convolution, groups 1, no padding: y = act(conv(p(x)) * scale[o] + shift[o] + residual), rounded once. residual
// and y are dense in `layout`; weight is a dense [O, C] matrix, weight, scale and shift are in the accumulator type of
// `dtype`.
struct PointwiseArgs {
  Dtype dtype;
  Activation activation;
  Layout layout;
  int64_t N, C, O;
  int64_t H, W, Ho, Wo, stride_h, stride_w;
  const void* x;         // dense in `layout`, or a channel slice of such a tensor
  int64_t x_stride;      // elements from pixel to pixel (NHWC, at least C), from image to image (NCHW, at least C H W)
  const void* weight;
  const void* scale;     // null: 1
  const void* shift;     // null: 0
  const void* residual;  // null: none
  void* y;
  Prologue prologue = {};
};

// Dense kH x kW convolution, groups 1, columns not dilated, with the same epilogue. x, residual and y are dense in the geometry's layout;
// weight has the dtype of x and any strides; scale and shift are in the accumulator type.
struct DirectArgs {
  Dtype dtype;
  Activation activation;
  ConvGeometry geometry;
  const void* x;
  const void* weight;
  int64_t weight_stride[4];
  const void* scale;     // null: 1
  const void* shift;     // null: 0
  const void* residual;  // null: none
  void* y;
};

// grad_weight[o][c] = sum over n, p of grad[n][o][p] * x[n][c][p], stride 1. grad and x are dense in `layout`;
// grad_weight is [O, C] in the accumulator type, partial has room for pointwise_weight_slices(...) matrices like it.
struct PointwiseWeightArgs {
  Dtype dtype;
  Layout layout;
  int64_t N, C, O, HW;
  const void* grad;
  const void* x;
  void* grad_weight;
  void* partial;
};

inline namespace FASTCNN_ISA {

// The sum over N * HW pixels is cut by shape alone, so that a result does not depend on the number of threads: slices
// of at least kPixels pixels (whole images in NCHW), at most kMost.
FASTCNN_INLINE int64_t pointwise_weight_slices(int64_t N, int64_t HW, Layout layout) {
  constexpr int64_t kPixels = 2048, kMost = 16;
  int64_t slices = N * HW / kPixels;
  if (layout == Layout::kNCHW && slices > N) slices = N;
  return slices < 1 ? 1 : slices > kMost ? kMost : slices;
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn

FASTCNN_KERNEL(pointwise_forward_kernel, PointwiseArgs)
FASTCNN_KERNEL(direct_forward_kernel, DirectArgs)
FASTCNN_KERNEL(pointwise_backward_weight_kernel, PointwiseWeightArgs)
