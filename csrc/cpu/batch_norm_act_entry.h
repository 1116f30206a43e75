// SPDX-License-Identifier: Apache-2.0
// The entry functions of batch_norm_act, the same for CPU and CUDA.
#pragma once

#include <string>

#include "batch_norm_act_host.h"

namespace fastcnn {

inline Tensor batch_norm_act_entry(const Tensor& x, const Tensor& running_mean, const Tensor& running_var,
                                   const OptionalTensor& weight, const OptionalTensor& bias,
                                   const OptionalTensor& residual, double eps, std::string activation) {
  STD_TORCH_CHECK(x.dim() == 4, "fastcnn: batch_norm_act takes 4-D tensors");
  const Layout layout = layout_of(x);
  const Tensor y = empty_4d(x, x.size(0), x.size(1), x.size(2), x.size(3), layout);
  const ScaleShift folded = fold_batch_norm(x, weight, bias, running_mean, running_var, eps);
  batch_norm_act_apply(as_layout(x, layout), layout, folded, residual, activation_of(activation), y);
  return y;
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> batch_norm_act_train_entry(
    const Tensor& x, const OptionalTensor& running_mean, const OptionalTensor& running_var,
    const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& residual, double momentum,
    double eps, std::string activation) {
  STD_TORCH_CHECK(x.dim() == 4, "fastcnn: batch_norm_act_train takes 4-D tensors");
  const Layout layout = layout_of(x);
  const Tensor dense = as_layout(x, layout);
  const Tensor y = empty_4d(x, x.size(0), x.size(1), x.size(2), x.size(3), layout);
  const BatchStatistics s = batch_norm_statistics(dense, layout, running_mean, running_var, momentum, eps);
  const ScaleShift folded = fold_batch_norm_invstd(x, weight, bias, s.mean, s.invstd);
  batch_norm_act_apply(dense, layout, folded, residual, activation_of(activation), y);
  return {y, s.mean, s.invstd, s.new_mean, s.new_var};
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_act_backward_entry(
    const Tensor& grad, const Tensor& x, const Tensor& mean, const Tensor& invstd, const OptionalTensor& weight,
    const OptionalTensor& bias, const OptionalTensor& residual, bool training, std::string activation,
    std::vector<bool> mask) {
  STD_TORCH_CHECK(x.dim() == 4, "fastcnn: batch_norm_act_backward takes 4-D tensors");
  const Layout layout = layout_of(x);
  const BatchNormGradients found = batch_norm_act_gradients(grad, as_layout(x, layout), layout, mean, invstd, weight,
                                                            bias, residual, training, activation_of(activation), mask);
  return {found.x, found.weight, found.bias, found.residual};
}

}  // namespace fastcnn
