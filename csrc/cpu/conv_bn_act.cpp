// SPDX-License-Identifier: Apache-2.0
// conv_bn_act: which convolution runs, and what is fused into it. Pointwise, depthwise and few-channel ones carry scale,
// shift, residual and activation in their epilogue; every other one is ATen's, followed by one pass in place.
#include "conv_bn_act.h"

#include "conv_bn_act_entry.h"
#include "depthwise_conv2d_host.h"
#include "pointwise_conv2d_entry.h"

namespace fastcnn {
namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kMostChannels = 4;   // of the input of a kFewChannels convolution
constexpr int64_t kMostTaps = 512;     // C kH kW of one: a thread packs all weights for itself

Tensor pointwise(const Convolution& c, const OptionalTensor& scale, const OptionalTensor& shift,
                 const OptionalTensor& residual, Activation activation, const Prologue& prologue) {
  const ConvGeometry& g = c.g;
  const Tensor y = empty_4d(c.x, g.N, g.O, g.Ho, g.Wo, g.layout);
  if (y.numel() == 0) return y;
  // One pixel an image: both formats are the same memory, and only channels have the length of a vector.
  const Layout layout = g.H * g.W == 1 ? Layout::kNHWC : g.layout;
  const int64_t slice = channel_slice_stride(c.x, layout);
  const int64_t x_stride = slice > 0 ? slice : layout == Layout::kNHWC ? g.C : g.C * g.H * g.W;
  pointwise_forward_kernel_dispatch({dtype_of(c.x), activation, layout, g.N, g.C, g.O, g.H, g.W, g.Ho, g.Wo, g.stride_h,
                                     g.stride_w, data(c.x), x_stride, data(c.weight), data(scale), data(shift), data(residual),
                                     mutable_data(y), prologue});
  return y;
}

Tensor few_channels(const Convolution& c, const OptionalTensor& scale, const OptionalTensor& shift,
                    const OptionalTensor& residual, Activation activation) {
  const ConvGeometry& g = c.g;
  const Tensor y = empty_4d(c.x, g.N, g.O, g.Ho, g.Wo, g.layout);
  if (y.numel() == 0) return y;
  const auto stride = c.weight.strides();
  direct_forward_kernel_dispatch({dtype_of(c.x), activation, g, data(c.x), data(c.weight),
                                  {stride[0], stride[1], stride[2], stride[3]}, data(scale), data(shift), data(residual),
                                  mutable_data(y)});
  return y;
}

// oneDNN's convolutions of half types go wrong off the beaten path: torch 2.14 on AMX returns random values where a stride
// leaves one column of output, and crashes on small maps, uneven strides and dilations. Such a one is computed in float.
bool needs_float(const Convolution& c) {
  constexpr int64_t kLeastSide = 7;
  const ConvGeometry& g = c.g;
  const ScalarType dtype = c.x.scalar_type();
  const bool usual = g.kH == g.kW && g.kH % 2 == 1 && g.stride_h == g.stride_w && g.stride_h <= 2 && g.dilation_h == 1 &&
                     g.dilation_w == 1 && g.H >= kLeastSide && g.W >= kLeastSide && g.pad_left <= g.kW / 2 &&
                     g.pad_right <= g.kW / 2 && g.pad_top <= g.kH / 2 && g.pad_bottom <= g.kH / 2;
  return (dtype == ScalarType::BFloat16 || dtype == ScalarType::Half) && !usual;
}

Tensor in_float(const Tensor& x) { return as_accumulator(x, Dtype::kFloat32); }

Tensor in_dtype_of(const Tensor& like, const Tensor& value, Layout layout) {
  Tensor copy = empty_4d(like, value.size(0), value.size(1), value.size(2), value.size(3), layout);
  return torch::stable::copy_(copy, value);
}

Tensor convolution_of_aten(const Convolution& c) {
  if (!needs_float(c)) return aten_convolution(c);
  return in_dtype_of(c.x, aten_convolution({c.g, c.kind, in_float(c.x), in_float(c.weight)}), c.g.layout);
}

ConvGradients pointwise_gradients(const Convolution& c, const Tensor& weight, const Tensor& grad, bool for_x,
                                  bool for_weight) {
  const ConvGeometry& g = c.g;
  ConvGradients found{no_tensor(c.x), no_tensor(c.x)};
  if (for_x) {  // the same convolution with the transposed weight
    Convolution transposed{g, ConvKind::kPointwise, grad, as_contiguous(torch::stable::transpose(c.weight, 0, 1))};
    std::swap(transposed.g.C, transposed.g.O);
    found.x = plain_convolution(transposed, std::nullopt);
  }
  if (for_weight) {
    const Layout layout = g.H * g.W == 1 ? Layout::kNHWC : g.layout;
    const int64_t size = g.O * g.C, slices = pointwise_weight_slices(g.N, g.H * g.W, layout);
    Tensor sum = empty_1d(c.weight, size);
    const Tensor partial = empty_1d(c.weight, slices > 1 ? slices * size : 0);
    if (g.N == 0 || size == 0) torch::stable::fill_(sum, 0.0);
    else
      pointwise_backward_weight_kernel_dispatch({dtype_of(c.x), layout, g.N, g.C, g.O, g.H * g.W, data(grad), data(c.x),
                                                 mutable_data(sum), mutable_data(partial)});
    found.weight = empty_4d(c.x, g.O, g.C, 1, 1, layout_of(weight));
    torch::stable::copy_(found.weight, torch::stable::view(sum, {g.O, g.C, 1, 1}));
  }
  return found;
}

ConvGradients gradients_of_aten(const Convolution& c, const Tensor& weight, const Tensor& grad, bool for_x,
                                bool for_weight) {
  if (!needs_float(c)) return aten_gradients(c, weight, grad, for_x, for_weight);
  const Convolution wide{c.g, c.kind, in_float(c.x), in_float(c.weight)};
  const ConvGradients found = aten_gradients(wide, in_float(weight), in_float(grad), for_x, for_weight);
  return {for_x ? in_dtype_of(c.x, found.x, c.g.layout) : no_tensor(c.x),
          for_weight ? in_dtype_of(c.x, found.weight, layout_of(weight)) : no_tensor(c.x)};
}

}  // namespace

Convolution plan_convolution(const Tensor& x, const Tensor& weight, const std::vector<int64_t>& stride,
                             const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t groups,
                             bool keep_slice) {
  STD_TORCH_CHECK(x.scalar_type() == weight.scalar_type(), "fastcnn: weight must have the dtype of x");
  ConvGeometry g = conv_geometry(x, weight, stride, padding, dilation, groups);
  const bool unpadded = g.pad_left + g.pad_right + g.pad_top + g.pad_bottom == 0;
  const bool few = groups == 1 && g.dilation_w == 1 && g.C <= kMostChannels && g.C * g.kH * g.kW <= kMostTaps;
  const ConvKind kind = g.kH == 1 && g.kW == 1 && groups == 1 && unpadded ? ConvKind::kPointwise
                        : groups == g.C                                   ? ConvKind::kDepthwise
                        : few                                             ? ConvKind::kFewChannels
                                                                          : ConvKind::kOther;
  const bool pointwise = kind == ConvKind::kPointwise;
  const bool slice = keep_slice && pointwise && x.is_cpu() && channel_slice_stride(x, g.layout) > 0;
  return {g, kind, slice ? x : as_layout(x, g.layout), pointwise ? as_accumulator(weight, dtype_of(x)) : weight};
}

Tensor convolve(const Convolution& c, const OptionalTensor& scale, const OptionalTensor& shift,
                const OptionalTensor& residual, Activation activation) {
  if (c.kind == ConvKind::kPointwise) return pointwise(c, scale, shift, residual, activation, {});
  if (c.kind == ConvKind::kFewChannels) return few_channels(c, scale, shift, residual, activation);
  if (c.kind == ConvKind::kDepthwise)
    return depthwise_forward(c.x, c.weight, c.g, data(scale), data(shift), residual, activation);
  const Tensor y = convolution_of_aten(c);
  if (scale || shift || residual || activation != Activation::kIdentity)
    batch_norm_act_apply(y, c.g.layout, {scale ? *scale : filled_vector(c, 1), shift ? *shift : filled_vector(c, 0)},
                         residual, activation, y);
  return y;
}

Tensor convolve_changed(const Convolution& c, const Change& change, const OptionalTensor& bias,
                        const OptionalTensor& residual, Activation activation) {
  return pointwise(c, std::nullopt, bias, residual, activation,
                   {change.activation, data(change.scale), data(change.shift), data(change.gate)});
}

ConvGradients convolution_gradients(const Convolution& c, const Tensor& weight, const Tensor& grad, bool for_x,
                                    bool for_weight) {
  if (c.kind == ConvKind::kPointwise && c.g.stride_h == 1 && c.g.stride_w == 1)
    return pointwise_gradients(c, weight, grad, for_x, for_weight);
  if (c.kind != ConvKind::kDepthwise) return gradients_of_aten(c, weight, grad, for_x, for_weight);
  auto [grad_x, grad_weight] = depthwise_backward(grad, c.x, c.weight, c.g, for_x, for_weight);
  return {grad_x, grad_weight};
}

}  // namespace fastcnn

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CPU, m) {
  m.impl("conv_bn_act", TORCH_BOX(&fastcnn::conv_bn_act_entry));
  m.impl("conv_bn_act_train", TORCH_BOX(&fastcnn::conv_bn_act_train_entry));
  m.impl("conv_bn_act_backward", TORCH_BOX(&fastcnn::conv_bn_act_backward_entry));
}
