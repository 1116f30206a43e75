// SPDX-License-Identifier: Apache-2.0
// The geometry of a 2-D convolution, resolved once on the host and read by every kernel.
#pragma once

#include <cstdint>

#include "namespace.h"

namespace fastcnn {

enum class Layout : int { kNCHW, kNHWC };

struct ConvGeometry {
  int64_t N, C, H, W;          // input
  int64_t O, Ho, Wo;           // output channels and size
  int64_t kH, kW;
  int64_t stride_h, stride_w;
  int64_t pad_left, pad_right, pad_top, pad_bottom;
  int64_t dilation_h, dilation_w;
  int64_t groups;
  Layout layout;               // of x, y and residual alike
};

struct PoolGeometry {  // a window of kH x kW; every one has a pixel of x in it
  int64_t N, C, H, W;  // input
  int64_t Ho, Wo;
  int64_t kH, kW;
  int64_t stride_h, stride_w;
  int64_t pad_top, pad_left;
  Layout layout;
};

inline namespace FASTCNN_ISA {

FASTCNN_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// TensorFlow's SAME: Ho = ceil(H / stride), the odd pixel goes to the end.
inline void resolve_same_padding(int64_t size, int64_t kernel, int64_t stride, int64_t dilation, int64_t* begin, int64_t* end) {
  const int64_t wanted = (ceil_div(size, stride) - 1) * stride + dilation * (kernel - 1) + 1 - size;
  const int64_t total = wanted > 0 ? wanted : 0;
  *begin = total / 2;
  *end = total - total / 2;
}

inline int64_t conv_output_size(int64_t size, int64_t pad_begin, int64_t pad_end, int64_t kernel, int64_t stride, int64_t dilation) {
  return (size + pad_begin + pad_end - dilation * (kernel - 1) - 1) / stride + 1;
}

// PyTorch's: with ceil_mode a last window may hang over the end, but has to begin within the input or its left padding.
inline int64_t pool_output_size(int64_t size, int64_t pad, int64_t kernel, int64_t stride, bool ceil_mode) {
  const int64_t reach = size + 2 * pad - kernel;
  const int64_t out = (reach + (ceil_mode ? stride - 1 : 0)) / stride + 1;
  return ceil_mode && (out - 1) * stride >= size + pad ? out - 1 : out;
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
