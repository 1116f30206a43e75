// SPDX-License-Identifier: Apache-2.0
// The entry functions of conv_bn_act, the same for CPU and CUDA. Each library brings the three functions that are only
// declared here.
#pragma once

#include <string>
#include <tuple>

#include "batch_norm_act_host.h"
#include "conv_bn_act_host.h"

namespace fastcnn {

// Checked, with its operands as convolve() wants them; keep_slice: x may stay a range of another tensor's channels.
Convolution plan_convolution(const Tensor& x, const Tensor& weight, const std::vector<int64_t>& stride,
                             const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t groups,
                             bool keep_slice = false);

// act(conv(x) * scale + shift + residual); scale and shift are accumulator vectors.
Tensor convolve(const Convolution& c, const OptionalTensor& scale, const OptionalTensor& shift,
                const OptionalTensor& residual, Activation activation);

// For the gradient of conv(x), dense in the layout of x; weight as the caller gave it.
ConvGradients convolution_gradients(const Convolution& c, const Tensor& weight, const Tensor& grad, bool for_x,
                                    bool for_weight);

inline Tensor plain_convolution(const Convolution& c, const OptionalTensor& bias) {
  return convolve(c, std::nullopt, bias, std::nullopt, Activation::kIdentity);
}

// Of a bias in front of batch norm: in training batch norm takes the mean of the batch away, and with it what a bias
// adds.
inline Tensor bias_gradient(const Convolution& c, const Tensor& grad, const Tensor& bias, bool training) {
  if (training) {
    Tensor zero = empty_1d(bias, bias.numel());
    return torch::stable::fill_(zero, 0.0);
  }
  return batch_norm_act_gradients(grad, grad, c.g.layout, filled_vector(c, 0), filled_vector(c, 1), std::nullopt, bias,
                                  std::nullopt, false, Activation::kIdentity, {false, false, true, false})
      .bias;
}

inline Tensor conv_bn_act_entry(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                const OptionalTensor& bn_weight, const OptionalTensor& bn_bias,
                                const OptionalTensor& running_mean, const OptionalTensor& running_var,
                                const OptionalTensor& residual, std::vector<int64_t> stride,
                                std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t groups,
                                double eps, std::string activation) {
  const Convolution c = plan_convolution(x, weight, stride, padding, dilation, groups, true);
  const OptionalTensor added = like_output(residual, c), conv_bias = per_channel(bias, c);
  if (!running_mean || !running_var) return convolve(c, std::nullopt, conv_bias, added, activation_of(activation));
  const Tensor mean = *per_channel(running_mean, c);
  const Tensor channels = empty_4d(c.x, 0, c.g.O, 0, 0, c.g.layout);
  const ScaleShift folded = fold_batch_norm(
      channels, bn_weight, bn_bias, conv_bias ? torch::stable::subtract(mean, *conv_bias) : mean, *running_var, eps);
  return convolve(c, folded.scale, folded.shift, added, activation_of(activation));
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> conv_bn_act_train_entry(
    const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& bn_weight,
    const OptionalTensor& bn_bias, const OptionalTensor& running_mean, const OptionalTensor& running_var,
    const OptionalTensor& residual, std::vector<int64_t> stride, std::vector<int64_t> padding,
    std::vector<int64_t> dilation, int64_t groups, double momentum, double eps, std::string activation) {
  const Convolution c = plan_convolution(x, weight, stride, padding, dilation, groups);
  const OptionalTensor added = like_output(residual, c);
  const Tensor z = plain_convolution(c, per_channel(bias, c));
  const Tensor y = fresh_like(z);
  BatchStatistics s = batch_norm_statistics(z, c.g.layout, running_mean, running_var, momentum, eps);
  const ScaleShift folded = fold_batch_norm_invstd(z, bn_weight, bn_bias, s.mean, s.invstd);
  batch_norm_act_apply(z, c.g.layout, folded, added, activation_of(activation), y);
  return {y, z, s.mean, s.invstd, s.new_mean, s.new_var};
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> conv_bn_act_backward_entry(
    const Tensor& grad, const Tensor& x, const Tensor& weight, const OptionalTensor& z, const OptionalTensor& bias,
    const OptionalTensor& bn_weight, const OptionalTensor& bn_bias, const OptionalTensor& mean,
    const OptionalTensor& invstd, const OptionalTensor& residual, std::vector<int64_t> stride,
    std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t groups, bool training, std::string activation,
    std::vector<bool> mask) {
  STD_TORCH_CHECK(mask.size() == 6,
                  "fastcnn: the mask of conv_bn_act names x, weight, bias, bn_weight, bn_bias and residual");
  const Convolution c = plan_convolution(x, weight, stride, padding, dilation, groups);
  const Activation kind = activation_of(activation);
  const OptionalTensor added = like_output(residual, c);
  const Tensor g = *like_output(grad, c);
  const bool norm = mean.has_value() && invstd.has_value();
  const bool for_conv = mask[0] || mask[1] || (norm && !training && mask[2]);
  BatchNormGradients found{g, no_tensor(x), no_tensor(x), no_tensor(x)};
  if (norm || kind != Activation::kIdentity || mask[2] || mask[5]) {
    // Without batch norm the bias of the convolution takes the place of batch norm's, and z comes without it.
    const bool reads_z = training || kind != Activation::kIdentity || mask[3];
    const OptionalTensor conv_bias = norm ? per_channel(bias, c) : std::nullopt;
    const Tensor before = z && norm ? *like_output(z, c) : reads_z ? plain_convolution(c, conv_bias) : g;
    found = batch_norm_act_gradients(g, before, c.g.layout, norm ? *mean : filled_vector(c, 0),
                                     norm ? *invstd : filled_vector(c, 1), norm ? bn_weight : std::nullopt,
                                     norm ? bn_bias : bias, added, training, kind,
                                     {for_conv, mask[3], norm ? mask[4] : mask[2], mask[5]});
  }
  ConvGradients conv{no_tensor(x), no_tensor(x)};
  if (mask[0] || mask[1]) conv = convolution_gradients(c, weight, found.x, mask[0], mask[1]);
  const Tensor none = no_tensor(x);
  const Tensor grad_bias = mask[2] && norm ? bias_gradient(c, found.x, *bias, training)
                           : mask[2]       ? found.bias
                                           : no_tensor(x);
  return {
      conv.x, conv.weight, grad_bias, found.weight, norm ? found.bias : none, mask[5] ? found.residual : no_tensor(x)};
}

}  // namespace fastcnn
