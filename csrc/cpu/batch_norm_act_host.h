// SPDX-License-Identifier: Apache-2.0
// Batch norm on tensors, for the entry functions of batch_norm_act and conv_bn_act. Tensors here are 4-D and dense in the layout named.
#pragma once

#include <optional>
#include <vector>

#include "tensor.h"

namespace fastcnn {

struct ScaleShift {  // [C], accumulator type
  Tensor scale, shift;
};

// From running statistics (eval) or from the batch's own (training). x gives C, dtype and device.
ScaleShift fold_batch_norm(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, const Tensor& mean, const Tensor& variance,
                           double eps);
ScaleShift fold_batch_norm_invstd(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias, const Tensor& mean,
                                  const Tensor& invstd);

struct BatchStatistics {
  Tensor mean, invstd;       // [C], accumulator type
  Tensor new_mean, new_var;  // [C] in the dtype of the running vectors, empty without them
};

BatchStatistics batch_norm_statistics(const Tensor& x, Layout layout, const OptionalTensor& running_mean, const OptionalTensor& running_var,
                                      double momentum, double eps);

// y = act(x * scale + shift + residual); y may be x.
void batch_norm_act_apply(const Tensor& x, Layout layout, const ScaleShift& folded, const OptionalTensor& residual, Activation activation,
                          const Tensor& y);

struct BatchNormGradients {
  Tensor x, weight, bias, residual;  // empty where the mask is off
};

// mask: x, weight, bias, residual. The outputs are dense in `layout`; weight and bias gradients have their vectors' dtype.
BatchNormGradients batch_norm_act_gradients(const Tensor& grad, const Tensor& x, Layout layout, const Tensor& mean, const Tensor& invstd,
                                            const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& residual,
                                            bool training, Activation activation, const std::vector<bool>& mask);

}  // namespace fastcnn
