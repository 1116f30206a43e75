// SPDX-License-Identifier: Apache-2.0
// conv_bn_act: which convolution runs, and what is fused into it. Pointwise, depthwise and few-channel ones carry scale,
// shift, residual and activation in their epilogue; every other one is ATen's, followed by one pass in place.
#include "conv_bn_act.h"

#include <array>
#include <tuple>

#include "batch_norm_act_host.h"
#include "depthwise_conv2d_host.h"

namespace fastcnn {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::detail::from;
using torch::stable::detail::to;

enum class Kind { kPointwise, kDepthwise, kFewChannels, kOther };

constexpr int64_t kMostChannels = 4;   // of the input of a kFewChannels convolution
constexpr int64_t kMostTaps = 512;     // C kH kW of one: a thread packs all weights for itself

struct Convolution {
  ConvGeometry g;
  Kind kind;
  Tensor x;       // dense in g.layout, or a channel slice where plan() was asked to keep one
  Tensor weight;  // contiguous [O, C] in the accumulator type for kPointwise
};

// What ATen returned, dense in the layout down to the strides of dimensions of size 1, which ATen sets as it likes.
Tensor as_exact_layout(const Tensor& x, Layout layout) {
  const auto at_least_one = [&](int d) { return x.size(d) > 1 ? x.size(d) : 1; };
  const int64_t C = at_least_one(1), H = at_least_one(2), W = at_least_one(3);
  const bool channels_last = layout == Layout::kNHWC;
  const std::array<int64_t, 4> wanted = channels_last ? std::array<int64_t, 4>{C * H * W, 1, W * C, C}
                                                      : std::array<int64_t, 4>{C * H * W, H * W, W, 1};
  const auto strides = x.strides();
  for (size_t d = 0; d < wanted.size(); ++d) {
    if (strides[d] == wanted[d]) continue;
    Tensor copy = empty_4d(x, x.size(0), x.size(1), x.size(2), x.size(3), layout);
    return torch::stable::copy_(copy, x);
  }
  return x;
}

Convolution plan(const Tensor& x, const Tensor& weight, const std::vector<int64_t>& stride,
                 const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t groups,
                 bool keep_slice = false) {
  STD_TORCH_CHECK(x.scalar_type() == weight.scalar_type(), "fastcnn: weight must have the dtype of x");
  ConvGeometry g = conv_geometry(x, weight, stride, padding, dilation, groups);
  const bool unpadded = g.pad_left + g.pad_right + g.pad_top + g.pad_bottom == 0;
  const Kind kind = g.kH == 1 && g.kW == 1 && groups == 1 && unpadded ? Kind::kPointwise
                    : groups == g.C                                   ? Kind::kDepthwise
                    : groups == 1 && g.dilation_w == 1 && g.C <= kMostChannels && g.C * g.kH * g.kW <= kMostTaps ? Kind::kFewChannels
                                                                      : Kind::kOther;
  const bool slice = keep_slice && kind == Kind::kPointwise && x.is_cpu() && channel_slice_stride(x, g.layout) > 0;
  return {g, kind, slice ? x : as_layout(x, g.layout), kind == Kind::kPointwise ? as_accumulator(weight, dtype_of(x)) : weight};
}

OptionalTensor per_channel(const OptionalTensor& vector, const Convolution& c) {
  if (!vector) return std::nullopt;
  STD_TORCH_CHECK(vector->numel() == c.g.O,
                  "fastcnn: bias and batch norm vectors must have one value per output channel");
  return as_accumulator(*vector, dtype_of(c.x));
}

OptionalTensor like_output(const OptionalTensor& residual, const Convolution& c) {
  if (!residual) return std::nullopt;
  STD_TORCH_CHECK(residual->scalar_type() == c.x.scalar_type() && residual->dim() == 4 && residual->size(0) == c.g.N &&
                      residual->size(1) == c.g.O && residual->size(2) == c.g.Ho && residual->size(3) == c.g.Wo,
                  "fastcnn: residual must have the dtype of x and the shape of the output");
  return as_layout(*residual, c.g.layout);
}

Tensor filled_vector(const Convolution& c, double value) {
  const Tensor like =
      empty_1d(c.x, c.g.O, c.x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float);
  Tensor vector = like;
  return torch::stable::fill_(vector, value);
}

Tensor pointwise(const Convolution& c, const OptionalTensor& scale, const OptionalTensor& shift,
                 const OptionalTensor& residual, Activation activation) {
  const ConvGeometry& g = c.g;
  const Tensor y = empty_4d(c.x, g.N, g.O, g.Ho, g.Wo, g.layout);
  if (y.numel() == 0) return y;
  // One pixel an image: both formats are the same memory, and only channels have the length of a vector.
  const Layout layout = g.H * g.W == 1 ? Layout::kNHWC : g.layout;
  const int64_t slice = channel_slice_stride(c.x, layout);
  const int64_t x_stride = slice > 0 ? slice : layout == Layout::kNHWC ? g.C : g.C * g.H * g.W;
  pointwise_forward_kernel_dispatch({dtype_of(c.x), activation, layout, g.N, g.C, g.O, g.H, g.W, g.Ho, g.Wo, g.stride_h,
                                     g.stride_w, data(c.x), x_stride, data(c.weight), data(scale), data(shift), data(residual),
                                     mutable_data(y)});
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

// ATen takes one padding for both ends.
struct PaddedInput {
  Tensor x;
  std::vector<int64_t> padding;
};

PaddedInput padded(const Convolution& c) {
  const ConvGeometry& g = c.g;
  if (g.pad_left == g.pad_right && g.pad_top == g.pad_bottom) return {c.x, {g.pad_top, g.pad_left}};
  const std::array<int64_t, 4> sides = {g.pad_left, g.pad_right, g.pad_top, g.pad_bottom};
  return {torch::stable::pad(c.x, {sides.data(), sides.size()}), {0, 0}};
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

Tensor aten_convolution(const Convolution& c) {
  const ConvGeometry& g = c.g;
  if (needs_float(c))
    return in_dtype_of(c.x, aten_convolution({g, c.kind, in_float(c.x), in_float(c.weight)}), g.layout);
  const PaddedInput input = padded(c);
  std::array<StableIValue, 9> stack{from(input.x),       from(c.weight),
                                    from(std::nullopt),  from(std::vector<int64_t>{g.stride_h, g.stride_w}),
                                    from(input.padding), from(std::vector<int64_t>{g.dilation_h, g.dilation_w}),
                                    from(false),         from(std::vector<int64_t>{0, 0}),
                                    from(g.groups)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::convolution", "", stack.data(), TORCH_ABI_VERSION));
  return as_exact_layout(to<Tensor>(stack[0]), g.layout);
}

// act(conv(x) * scale + shift + residual); scale and shift are accumulator vectors.
Tensor convolve(const Convolution& c, const OptionalTensor& scale, const OptionalTensor& shift,
                const OptionalTensor& residual, Activation activation) {
  if (c.kind == Kind::kPointwise) return pointwise(c, scale, shift, residual, activation);
  if (c.kind == Kind::kFewChannels) return few_channels(c, scale, shift, residual, activation);
  if (c.kind == Kind::kDepthwise)
    return depthwise_forward(c.x, c.weight, c.g, data(scale), data(shift), residual, activation);
  const Tensor y = aten_convolution(c);
  if (scale || shift || residual || activation != Activation::kIdentity)
    batch_norm_act_apply(y, c.g.layout, {scale ? *scale : filled_vector(c, 1), shift ? *shift : filled_vector(c, 0)},
                         residual, activation, y);
  return y;
}

Tensor plain_convolution(const Convolution& c, const OptionalTensor& bias) {
  return convolve(c, std::nullopt, bias, std::nullopt, Activation::kIdentity);
}

struct ConvGradients {
  Tensor x, weight;  // empty where not wanted
};

ConvGradients pointwise_gradients(const Convolution& c, const Tensor& weight, const Tensor& grad, bool for_x,
                                  bool for_weight) {
  const ConvGeometry& g = c.g;
  ConvGradients found{no_tensor(c.x), no_tensor(c.x)};
  if (for_x) {  // the same convolution with the transposed weight
    Convolution transposed{g, Kind::kPointwise, grad, as_contiguous(torch::stable::transpose(c.weight, 0, 1))};
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

ConvGradients aten_gradients(const Convolution& c, const Tensor& weight, const Tensor& grad, bool for_x,
                             bool for_weight) {
  const ConvGeometry& g = c.g;
  if (needs_float(c)) {
    const Convolution wide{g, c.kind, in_float(c.x), in_float(c.weight)};
    const ConvGradients found = aten_gradients(wide, in_float(weight), in_float(grad), for_x, for_weight);
    return {for_x ? in_dtype_of(c.x, found.x, g.layout) : no_tensor(c.x),
            for_weight ? in_dtype_of(c.x, found.weight, layout_of(weight)) : no_tensor(c.x)};
  }
  const PaddedInput input = padded(c);
  const std::array<bool, 3> mask = {for_x, for_weight, false};
  std::array<StableIValue, 11> stack{from(grad),
                                     from(input.x),
                                     from(weight),
                                     from(std::nullopt),
                                     from(std::vector<int64_t>{g.stride_h, g.stride_w}),
                                     from(input.padding),
                                     from(std::vector<int64_t>{g.dilation_h, g.dilation_w}),
                                     from(false),
                                     from(std::vector<int64_t>{0, 0}),
                                     from(g.groups),
                                     from(torch::headeronly::HeaderOnlyArrayRef<bool>(mask.data(), mask.size()))};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::convolution_backward", "", stack.data(), TORCH_ABI_VERSION));
  Tensor grad_x = to<Tensor>(stack[0]), grad_weight = to<Tensor>(stack[1]);
  to<Tensor>(stack[2]);  // takes the handle of the bias gradient, which is undefined
  if (for_x && input.x.size(2) + input.x.size(3) != g.H + g.W) {
    grad_x = torch::stable::narrow(grad_x, 2, g.pad_top, g.H);
    grad_x = torch::stable::narrow(grad_x, 3, g.pad_left, g.W);
  }
  return {for_x ? as_exact_layout(grad_x, g.layout) : no_tensor(c.x),
          for_weight ? as_exact_layout(grad_weight, layout_of(weight)) : no_tensor(c.x)};
}

ConvGradients gradients(const Convolution& c, const Tensor& weight, const Tensor& grad, bool for_x, bool for_weight) {
  if (c.kind == Kind::kPointwise && c.g.stride_h == 1 && c.g.stride_w == 1)
    return pointwise_gradients(c, weight, grad, for_x, for_weight);
  if (c.kind != Kind::kDepthwise) return aten_gradients(c, weight, grad, for_x, for_weight);
  auto [grad_x, grad_weight] = depthwise_backward(grad, c.x, c.weight, c.g, for_x, for_weight);
  return {grad_x, grad_weight};
}

// Of a bias in front of batch norm: in training batch norm takes the mean of the batch away, and with it what a bias
// adds.
Tensor bias_gradient(const Convolution& c, const Tensor& grad, const Tensor& bias, bool training) {
  if (training) {
    Tensor zero = empty_1d(bias, bias.numel());
    return torch::stable::fill_(zero, 0.0);
  }
  return batch_norm_act_gradients(grad, grad, c.g.layout, filled_vector(c, 0), filled_vector(c, 1), std::nullopt, bias,
                                  std::nullopt, false, Activation::kIdentity, {false, false, true, false})
      .bias;
}

}  // namespace

Tensor conv_bn_act_cpu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                       const OptionalTensor& bn_weight, const OptionalTensor& bn_bias,
                       const OptionalTensor& running_mean, const OptionalTensor& running_var,
                       const OptionalTensor& residual, std::vector<int64_t> stride, std::vector<int64_t> padding,
                       std::vector<int64_t> dilation, int64_t groups, double eps, std::string activation) {
  const Convolution c = plan(x, weight, stride, padding, dilation, groups, true);
  const OptionalTensor added = like_output(residual, c), conv_bias = per_channel(bias, c);
  if (!running_mean || !running_var) return convolve(c, std::nullopt, conv_bias, added, activation_of(activation));
  const Tensor mean = *per_channel(running_mean, c);
  const Tensor channels = empty_4d(c.x, 0, c.g.O, 0, 0, c.g.layout);
  const ScaleShift folded = fold_batch_norm(
      channels, bn_weight, bn_bias, conv_bias ? torch::stable::subtract(mean, *conv_bias) : mean, *running_var, eps);
  return convolve(c, folded.scale, folded.shift, added, activation_of(activation));
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> conv_bn_act_train_cpu(
    const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& bn_weight,
    const OptionalTensor& bn_bias, const OptionalTensor& running_mean, const OptionalTensor& running_var,
    const OptionalTensor& residual, std::vector<int64_t> stride, std::vector<int64_t> padding,
    std::vector<int64_t> dilation, int64_t groups, double momentum, double eps, std::string activation) {
  const Convolution c = plan(x, weight, stride, padding, dilation, groups);
  const OptionalTensor added = like_output(residual, c);
  const Tensor z = plain_convolution(c, per_channel(bias, c));
  const Tensor y = fresh_like(z);
  BatchStatistics s = batch_norm_statistics(z, c.g.layout, running_mean, running_var, momentum, eps);
  const ScaleShift folded = fold_batch_norm_invstd(z, bn_weight, bn_bias, s.mean, s.invstd);
  batch_norm_act_apply(z, c.g.layout, folded, added, activation_of(activation), y);
  return {y, z, s.mean, s.invstd, s.new_mean, s.new_var};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> conv_bn_act_backward_cpu(
    const Tensor& grad, const Tensor& x, const Tensor& weight, const OptionalTensor& z, const OptionalTensor& bias,
    const OptionalTensor& bn_weight, const OptionalTensor& bn_bias, const OptionalTensor& mean,
    const OptionalTensor& invstd, const OptionalTensor& residual, std::vector<int64_t> stride,
    std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t groups, bool training, std::string activation,
    std::vector<bool> mask) {
  STD_TORCH_CHECK(mask.size() == 6,
                  "fastcnn: the mask of conv_bn_act names x, weight, bias, bn_weight, bn_bias and residual");
  const Convolution c = plan(x, weight, stride, padding, dilation, groups);
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
  if (mask[0] || mask[1]) conv = gradients(c, weight, found.x, mask[0], mask[1]);
  const Tensor none = no_tensor(x);
  const Tensor grad_bias = mask[2] && norm ? bias_gradient(c, found.x, *bias, training)
                           : mask[2]       ? found.bias
                                           : no_tensor(x);
  return {
      conv.x, conv.weight, grad_bias, found.weight, norm ? found.bias : none, mask[5] ? found.residual : no_tensor(x)};
}

}  // namespace fastcnn

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CPU, m) {
  m.impl("conv_bn_act", TORCH_BOX(&fastcnn::conv_bn_act_cpu));
  m.impl("conv_bn_act_train", TORCH_BOX(&fastcnn::conv_bn_act_train_cpu));
  m.impl("conv_bn_act_backward", TORCH_BOX(&fastcnn::conv_bn_act_backward_cpu));
}
