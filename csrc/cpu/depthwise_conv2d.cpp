// SPDX-License-Identifier: Apache-2.0
#include "depthwise_conv2d.h"

#include <tuple>

#include "activation.h"
#include "depthwise_conv2d_host.h"
#include "parallel.h"

namespace fastcnn {
namespace {

// NCHW kernels copy the rows at hand, padding included. Paddings, strides or dilations beyond reason would make one
// row's copy huge.
bool planes_fit(const ConvGeometry& g) {
  constexpr double kLimit = double(int64_t(1) << 24);  // elements
  const auto axis = [](int64_t size, int64_t out, int64_t kernel, int64_t stride, int64_t dilation, int64_t pad) {
    const double reach = double((kernel - 1) * dilation) / double(stride) + 1;
    return double(size + pad) / double(stride) + double(out) + reach;
  };
  const double columns = axis(g.W, g.Wo, g.kW, g.stride_w, g.dilation_w, g.pad_left);
  const double rows = double((g.kH - 1) * g.dilation_h) / double(g.stride_h) + 2;
  return columns * rows * double(g.stride_h) * double(g.stride_w) * double(g.O / g.C + 1) < kLimit;
}

template <typename Element> void repeat_elements(const void* from, void* to, int64_t count, int64_t times) {
  const Element* x = static_cast<const Element*>(from);
  Element* y = static_cast<Element*>(to);
  parallel_for(count, 16384, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t j = 0; j < times; ++j) y[i * times + j] = x[i];
  });
}

// x as the NHWC kernels want it beside a weight of O filters: dense, and with a depth multiplier each channel once per
// filter.
Tensor as_nhwc(const Tensor& x, const ConvGeometry& g) {
  const Tensor dense = as_layout(x, Layout::kNHWC);
  if (g.O == g.C) return dense;
  Tensor repeated = empty_4d(x, g.N, g.O, g.H, g.W, Layout::kNHWC);
  const int64_t count = g.N * g.C * g.H * g.W;
  switch (dtype_of(x)) {
    case Dtype::kFloat64:
      repeat_elements<uint64_t>(data(dense), mutable_data(repeated), count, g.O / g.C);
      break;
    case Dtype::kFloat32:
      repeat_elements<uint32_t>(data(dense), mutable_data(repeated), count, g.O / g.C);
      break;
    default:
      repeat_elements<uint16_t>(data(dense), mutable_data(repeated), count, g.O / g.C);
  }
  return repeated;
}

void check_dtype(const Tensor& tensor, const Tensor& x, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == x.scalar_type(), "fastcnn: depthwise_conv2d: ", name,
                  " must have the dtype of x");
}

void check_shape(const Tensor& tensor, const ConvGeometry& g, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 4 && tensor.size(0) == g.N && tensor.size(1) == g.O && tensor.size(2) == g.Ho &&
                      tensor.size(3) == g.Wo,
                  "fastcnn: depthwise_conv2d: ", name, " must have the shape of the output");
}

}  // namespace

Tensor depthwise_forward(const Tensor& x, const Tensor& weight, const ConvGeometry& geometry, const void* scale,
                         const void* shift, const OptionalTensor& residual, Activation activation) {
  check_dtype(weight, x, "weight");
  if (residual) {
    check_dtype(*residual, x, "residual");
    check_shape(*residual, geometry, "residual");
  }
  ConvGeometry g = geometry;
  Tensor y = empty_4d(x, g.N, g.O, g.Ho, g.Wo, g.layout);
  if (y.numel() == 0) return y;
  if (g.layout == Layout::kNCHW && !planes_fit(g)) g.layout = Layout::kNHWC;
  const Tensor result = g.layout == geometry.layout ? y : empty_4d(x, g.N, g.O, g.Ho, g.Wo, g.layout);
  const Tensor dense_x = g.layout == Layout::kNHWC ? as_nhwc(x, g) : as_layout(x, g.layout);
  const Tensor dense_weight = as_contiguous(weight);
  OptionalTensor dense_residual;
  if (residual) dense_residual = as_layout(*residual, g.layout);
  if (g.layout == Layout::kNHWC) g.C = g.groups = g.O;
  depthwise_conv2d_kernel_dispatch({dtype_of(x), g, activation, false, data(dense_x), data(dense_weight), scale, shift,
                                    data(dense_residual), mutable_data(result)});
  return g.layout == geometry.layout ? y : torch::stable::copy_(y, result);
}

namespace {

struct Gradients {
  Tensor x, weight, bias;  // bias in the accumulator's type
};

Gradients gradients(const Tensor& grad_z, const Tensor& x, const Tensor& weight, const ConvGeometry& geometry,
                    bool need_x, bool need_weight, bool need_bias) {
  check_dtype(weight, x, "weight");
  check_dtype(grad_z, x, "grad");
  check_shape(grad_z, geometry, "grad");
  using torch::headeronly::ScalarType;
  const Dtype dtype = dtype_of(x);
  ConvGeometry g = geometry;
  if (g.layout == Layout::kNCHW && !planes_fit(g)) g.layout = Layout::kNHWC;
  const Tensor grad = as_layout(grad_z, g.layout);
  Gradients found{no_tensor(x), no_tensor(x), no_tensor(x)};
  if (need_x) {
    const Tensor dense_weight = as_contiguous(weight);
    found.x = empty_4d(x, g.N, g.C, g.H, g.W, g.layout);
    if (found.x.numel() == 0) {
    } else if (g.stride_h == 1 && g.stride_w == 1 && g.O == g.C) {
      ConvGeometry back = g;
      back.H = g.Ho, back.W = g.Wo, back.Ho = g.H, back.Wo = g.W;
      back.pad_top = g.dilation_h * (g.kH - 1) - g.pad_top, back.pad_left = g.dilation_w * (g.kW - 1) - g.pad_left;
      depthwise_conv2d_kernel_dispatch({dtype, back, Activation::kIdentity, true, data(grad), data(dense_weight),
                                        nullptr, nullptr, nullptr, mutable_data(found.x)});
    } else {
      depthwise_conv2d_backward_input_kernel_dispatch(
          {dtype, g, data(grad), nullptr, data(dense_weight), mutable_data(found.x), nullptr, nullptr});
    }
    if (g.layout != geometry.layout) {
      Tensor y = empty_4d(x, g.N, g.C, g.H, g.W, geometry.layout);
      found.x = torch::stable::copy_(y, found.x);
    }
  }
  if (need_weight || need_bias) {
    found.bias = empty_1d(x, g.O, dtype == Dtype::kFloat64 ? ScalarType::Double : ScalarType::Float);
    found.weight = empty_4d(x, g.O, 1, g.kH, g.kW, Layout::kNCHW);
    const Tensor dense_x = g.layout == Layout::kNHWC ? as_nhwc(x, g) : as_layout(x, g.layout);
    if (g.layout == Layout::kNHWC) g.C = g.groups = g.O;
    depthwise_conv2d_backward_weight_kernel_dispatch(
        {dtype, g, data(grad), data(dense_x), nullptr, nullptr, mutable_data(found.weight), mutable_data(found.bias)});
  }
  return found;
}

}  // namespace

std::pair<Tensor, Tensor> depthwise_backward(const Tensor& grad_z, const Tensor& x, const Tensor& weight,
                                             const ConvGeometry& geometry, bool need_x, bool need_weight) {
  const Gradients found = gradients(grad_z, x, weight, geometry, need_x, need_weight, false);
  return {found.x, found.weight};
}

Tensor depthwise_conv2d_cpu(const Tensor& x, const Tensor& weight, OptionalTensor bias, OptionalTensor residual,
                            std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
                            std::string activation) {
  const ConvGeometry g = conv_geometry(x, weight, stride, padding, dilation, x.size(1));
  OptionalTensor shift;
  if (bias) {
    STD_TORCH_CHECK(bias->numel() == g.O, "fastcnn: depthwise_conv2d: bias must have one element per output channel");
    shift = as_accumulator(*bias, dtype_of(x));
  }
  return depthwise_forward(x, weight, g, nullptr, data(shift), residual, activation_of(activation));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> depthwise_conv2d_backward_cpu(
    const Tensor& grad, const Tensor& x, const Tensor& weight, OptionalTensor bias, OptionalTensor residual,
    std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation, std::string activation,
    std::vector<bool> mask) {
  STD_TORCH_CHECK(mask.size() == 4 && (!mask[2] || bias),
                  "fastcnn: depthwise_conv2d_backward: mask takes 4 values, bias a tensor where it is masked");
  const ConvGeometry g = conv_geometry(x, weight, stride, padding, dilation, x.size(1));
  check_dtype(grad, x, "grad");
  check_shape(grad, g, "grad");
  const Activation kind = activation_of(activation);
  Tensor grad_z = grad;
  if (kind != Activation::kIdentity) {
    // z again, then grad * act'(z) in its place
    const Tensor dense = as_layout(grad, g.layout);
    grad_z = depthwise_conv2d_cpu(x, weight, bias, residual, stride, padding, dilation, "identity");
    activation_kernel_dispatch({dtype_of(x), kind, data(grad_z), data(dense), mutable_data(grad_z), grad_z.numel()});
  } else if (mask[3]) {
    grad_z = empty_4d(x, g.N, g.O, g.Ho, g.Wo, g.layout);
    torch::stable::copy_(grad_z, grad);
  }
  Gradients found = gradients(grad_z, x, weight, g, mask[0], mask[1], mask[2]);
  if (mask[2] && found.bias.scalar_type() != bias->scalar_type()) {
    Tensor rounded = empty_1d(*bias, g.O);
    found.bias = torch::stable::copy_(rounded, found.bias);
  }
  return {found.x, mask[1] ? found.weight : no_tensor(x), mask[2] ? found.bias : no_tensor(x),
          mask[3] ? grad_z : no_tensor(x)};
}

}  // namespace fastcnn

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CPU, m) {
  m.impl("depthwise_conv2d", TORCH_BOX(&fastcnn::depthwise_conv2d_cpu));
  m.impl("depthwise_conv2d_backward", TORCH_BOX(&fastcnn::depthwise_conv2d_backward_cpu));
}
