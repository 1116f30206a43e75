// SPDX-License-Identifier: Apache-2.0
// The entry functions of max_pool2d, the same for CPU and CUDA.
#pragma once

#include "max_pool2d.h"
#include "tensor.h"

namespace fastcnn {

inline PoolGeometry pool_geometry(const Tensor& x, const std::vector<int64_t>& kernel, const std::vector<int64_t>& stride,
                                  const std::vector<int64_t>& padding, bool ceil_mode) {
  STD_TORCH_CHECK(x.dim() == 4 && x.size(2) > 0 && x.size(3) > 0, "fastcnn: max_pool2d needs [N, C, H, W] with at least one pixel");
  STD_TORCH_CHECK(kernel.size() == 2 && stride.size() == 2 && padding.size() == 2,
                  "fastcnn: max_pool2d: kernel_size, stride and padding take 2 numbers");
  // Everything below stays far from 2^63, and the place of a pixel in its window is exact in float32.
  constexpr int64_t kLimit = int64_t(1) << 31, kPlaces = int64_t(1) << 24;
  for (int d = 0; d < 2; ++d) {
    STD_TORCH_CHECK(kernel[d] > 0 && kernel[d] < kLimit && stride[d] > 0 && stride[d] < kLimit,
                    "fastcnn: max_pool2d: kernel_size and stride must be positive and below 2^31");
    STD_TORCH_CHECK(padding[d] >= 0 && padding[d] <= kernel[d] / 2, "fastcnn: max_pool2d: padding must be at most half of kernel_size");
    const int64_t hanging = ceil_mode ? stride[d] - 1 : 0;
    STD_TORCH_CHECK(x.size(2 + d) + 2 * padding[d] + hanging >= kernel[d], "fastcnn: max_pool2d: kernel_size is larger than the padded input");
  }
  STD_TORCH_CHECK(kernel[0] * kernel[1] <= kPlaces, "fastcnn: max_pool2d: kernel_size must be at most 2^24 pixels");
  PoolGeometry g{};
  g.N = x.size(0), g.C = x.size(1), g.H = x.size(2), g.W = x.size(3);
  g.kH = kernel[0], g.kW = kernel[1], g.stride_h = stride[0], g.stride_w = stride[1];
  g.pad_top = padding[0], g.pad_left = padding[1];
  g.Ho = pool_output_size(g.H, g.pad_top, g.kH, g.stride_h, ceil_mode);
  g.Wo = pool_output_size(g.W, g.pad_left, g.kW, g.stride_w, ceil_mode);
  g.layout = layout_of(x);
  return g;
}

inline Tensor max_pool2d_entry(const Tensor& x, std::vector<int64_t> kernel_size, std::vector<int64_t> stride,
                               std::vector<int64_t> padding, bool ceil_mode) {
  const PoolGeometry g = pool_geometry(x, kernel_size, stride, padding, ceil_mode);
  const Tensor y = empty_4d(x, g.N, g.C, g.Ho, g.Wo, g.layout);
  if (y.numel() == 0) return y;
  const Tensor dense = as_layout(x, g.layout);
  max_pool2d_forward_kernel_dispatch({dtype_of(x), g, data(dense), mutable_data(y)});
  return y;
}

inline Tensor max_pool2d_backward_entry(const Tensor& grad, const Tensor& x, std::vector<int64_t> kernel_size,
                                        std::vector<int64_t> stride, std::vector<int64_t> padding, bool ceil_mode) {
  const PoolGeometry g = pool_geometry(x, kernel_size, stride, padding, ceil_mode);
  STD_TORCH_CHECK(grad.dim() == 4 && grad.size(0) == g.N && grad.size(1) == g.C && grad.size(2) == g.Ho && grad.size(3) == g.Wo &&
                      grad.scalar_type() == x.scalar_type(),
                  "fastcnn: max_pool2d_backward needs grad [N, C, Ho, Wo] in the dtype of x");
  const Tensor grad_x = empty_4d(x, g.N, g.C, g.H, g.W, g.layout);
  if (grad_x.numel() == 0) return grad_x;
  const Tensor dense = as_layout(x, g.layout), dense_grad = as_layout(grad, g.layout);
  max_pool2d_backward_kernel_dispatch({dtype_of(x), g, data(dense_grad), data(dense), mutable_data(grad_x)});
  return grad_x;
}

}  // namespace fastcnn
