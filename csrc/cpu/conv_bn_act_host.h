// SPDX-License-Identifier: Apache-2.0
// A convolution on tensors, for the entry functions of conv_bn_act, CPU and CUDA: checks, and ATen's convolution and
// its gradients through the stable ABI.
#pragma once

#include <array>
#include <vector>

#include "tensor.h"

namespace fastcnn {

enum class ConvKind { kPointwise, kDepthwise, kFewChannels, kOther };

struct Convolution {
  ConvGeometry g;
  ConvKind kind;
  Tensor x;       // dense in g.layout, or a channel slice where plan_convolution() was asked to keep one
  Tensor weight;  // CPU: contiguous [O, C] in the accumulator type for kPointwise
};

// What ATen returned, dense in the layout down to the strides of dimensions of size 1, which ATen sets as it likes.
inline Tensor as_exact_layout(const Tensor& x, Layout layout) {
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

inline OptionalTensor per_channel(const OptionalTensor& vector, const Convolution& c) {
  if (!vector) return std::nullopt;
  STD_TORCH_CHECK(vector->numel() == c.g.O,
                  "fastcnn: bias and batch norm vectors must have one value per output channel");
  return as_accumulator(*vector, dtype_of(c.x));
}

inline OptionalTensor like_output(const OptionalTensor& residual, const Convolution& c) {
  if (!residual) return std::nullopt;
  STD_TORCH_CHECK(residual->scalar_type() == c.x.scalar_type() && residual->dim() == 4 && residual->size(0) == c.g.N &&
                      residual->size(1) == c.g.O && residual->size(2) == c.g.Ho && residual->size(3) == c.g.Wo,
                  "fastcnn: residual must have the dtype of x and the shape of the output");
  return as_layout(*residual, c.g.layout);
}

inline Tensor filled_vector(const Convolution& c, double value) {
  using torch::headeronly::ScalarType;
  const Tensor like =
      empty_1d(c.x, c.g.O, c.x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float);
  Tensor vector = like;
  return torch::stable::fill_(vector, value);
}

// ATen takes one padding for both ends.
struct PaddedInput {
  Tensor x;
  std::vector<int64_t> padding;
};

inline PaddedInput padded(const Convolution& c) {
  const ConvGeometry& g = c.g;
  if (g.pad_left == g.pad_right && g.pad_top == g.pad_bottom) return {c.x, {g.pad_top, g.pad_left}};
  const std::array<int64_t, 4> sides = {g.pad_left, g.pad_right, g.pad_top, g.pad_bottom};
  return {torch::stable::pad(c.x, {sides.data(), sides.size()}), {0, 0}};
}

inline Tensor aten_convolution(const Convolution& c) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  const ConvGeometry& g = c.g;
  const PaddedInput input = padded(c);
  std::array<StableIValue, 9> stack{from(input.x),       from(c.weight),
                                    from(std::nullopt),  from(std::vector<int64_t>{g.stride_h, g.stride_w}),
                                    from(input.padding), from(std::vector<int64_t>{g.dilation_h, g.dilation_w}),
                                    from(false),         from(std::vector<int64_t>{0, 0}),
                                    from(g.groups)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::convolution", "", stack.data(), TORCH_ABI_VERSION));
  return as_exact_layout(to<Tensor>(stack[0]), g.layout);
}

struct ConvGradients {
  Tensor x, weight;  // empty where not wanted
};

inline ConvGradients aten_gradients(const Convolution& c, const Tensor& weight, const Tensor& grad,
                                    bool for_x, bool for_weight) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  const ConvGeometry& g = c.g;
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

}  // namespace fastcnn
