// SPDX-License-Identifier: Apache-2.0
// The entry function of pointwise_conv2d, the same for CPU and CUDA. Each library brings convolve_changed().
#pragma once

#include <string>

#include "conv_bn_act_entry.h"

namespace fastcnn {

// What happens to x in front of the convolution: act(x * scale + shift) * gate, accumulator tensors [C], [C], [N, C].
struct Change {
  Activation activation;
  OptionalTensor scale, shift, gate;
};

// act(conv(change(x)) + bias + residual), of a plan for 1x1 with stride 1; bias is an accumulator vector.
Tensor convolve_changed(const Convolution& c, const Change& change, const OptionalTensor& bias,
                        const OptionalTensor& residual, Activation activation);

inline OptionalTensor of_input(const OptionalTensor& vector, const Convolution& c, int64_t size) {
  if (!vector) return std::nullopt;
  STD_TORCH_CHECK(vector->numel() == size,
                  "fastcnn: scale and shift must have one value per channel of x, gate one per image and channel");
  return as_accumulator(*vector, dtype_of(c.x));
}

inline Tensor pointwise_conv2d_entry(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                     const OptionalTensor& residual, const OptionalTensor& gate,
                                     const OptionalTensor& scale, const OptionalTensor& shift, std::string prologue,
                                     std::string activation) {
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(2) == 1 && weight.size(3) == 1,
                  "fastcnn: pointwise_conv2d: weight must be [O, C, 1, 1]");
  STD_TORCH_CHECK(scale.has_value() == shift.has_value(), "fastcnn: pointwise_conv2d: scale and shift come together");
  const Convolution c = plan_convolution(x, weight, {1, 1}, {0, 0, 0, 0}, {1, 1}, 1, true);
  const int64_t C = c.g.C;
  return convolve_changed(
      c, {activation_of(prologue), of_input(scale, c, C), of_input(shift, c, C), of_input(gate, c, c.g.N * C)},
      per_channel(bias, c), like_output(residual, c), activation_of(activation));
}

}  // namespace fastcnn
