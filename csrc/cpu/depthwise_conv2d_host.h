// SPDX-License-Identifier: Apache-2.0
// The depthwise convolution for other entry functions (conv_bn_act and depthwise_se_gate call it): tensors in, fresh
// tensors out.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "depthwise_conv2d.h"
#include "tensor.h"

namespace fastcnn {

// act(conv(x, weight) * scale + shift + residual), in the layout of x. scale and shift: [O] in the accumulator's type
// (float; double for double) or null. geometry comes from conv_geometry with groups = C.
Tensor depthwise_forward(const Tensor& x, const Tensor& weight, const ConvGeometry& geometry, const void* scale,
                         const void* shift, const OptionalTensor& residual, Activation activation);

// The op itself, in the CPU library only.
Tensor depthwise_conv2d_cpu(const Tensor& x, const Tensor& weight, OptionalTensor bias, OptionalTensor residual,
                            std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
                            std::string activation);

// (grad_x, grad_weight) for the gradient of z = conv(x, weight), any layout; what is not needed comes back empty.
// grad_weight of an empty batch is zero.
std::pair<Tensor, Tensor> depthwise_backward(const Tensor& grad_z, const Tensor& x, const Tensor& weight,
                                             const ConvGeometry& geometry, bool need_x, bool need_weight);

}  // namespace fastcnn
