// SPDX-License-Identifier: Apache-2.0
// Entry code shared by the elementwise ops: bring every operand to the strides of the result, then run over dense memory.
#pragma once

#include "activation.h"
#include "tensor.h"

namespace fastcnn {

inline bool same_strides(const Tensor& a, const Tensor& b) {
  const auto sizes = a.sizes();
  const auto x = a.strides();
  const auto y = b.strides();
  for (size_t d = 0; d < sizes.size(); ++d)
    if (sizes[d] != 1 && x[d] != y[d]) return false;
  return true;
}

// x, or a copy of it with the strides of y. fresh_like(x) has x's own strides exactly when x is dense and does not overlap.
inline Tensor with_strides_of(const Tensor& x, const Tensor& y) {
  if (same_strides(x, y)) return x;
  Tensor copy = fresh_like(y);
  return torch::stable::copy_(copy, x);
}

inline Tensor apply_activation(const Tensor& x, Activation kind) {
  Tensor y = fresh_like(x);
  if (y.numel() == 0) return y;
  const Tensor dense = with_strides_of(x, y);
  activation_kernel_dispatch({dtype_of(x), kind, data(dense), nullptr, mutable_data(y), y.numel()});
  return y;
}

inline Tensor apply_activation_backward(const Tensor& grad, const Tensor& x, Activation kind) {
  bool same = grad.dim() == x.dim() && grad.scalar_type() == x.scalar_type();
  for (int64_t d = 0; same && d < x.dim(); ++d) same = grad.size(d) == x.size(d);
  STD_TORCH_CHECK(same, "fastcnn: grad must have the shape and dtype of x");
  Tensor y = fresh_like(x);
  if (y.numel() == 0) return y;
  const Tensor dense_x = with_strides_of(x, y);
  const Tensor dense_grad = with_strides_of(grad, y);
  activation_kernel_dispatch({dtype_of(x), kind, data(dense_x), data(dense_grad), mutable_data(y), y.numel()});
  return y;
}

}  // namespace fastcnn
