// SPDX-License-Identifier: Apache-2.0
#include "depthwise_conv2d_backward.cuh"

#include <tuple>

#include "../common/dispatch.h"
#include "entry.h"

namespace fastcnn {
namespace {

constexpr char kOp[] = "depthwise_conv2d";

void check_shape(const Tensor& tensor, const ConvGeometry& g, const char* name) {
  STD_TORCH_CHECK(tensor.dim() == 4 && tensor.size(0) == g.N && tensor.size(1) == g.O && tensor.size(2) == g.Ho &&
                      tensor.size(3) == g.Wo,
                  "fastcnn: ", kOp, ": ", name, " must have the shape of the output");
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> depthwise_conv2d_backward_cuda(
    const Tensor& grad, const Tensor& x, const Tensor& weight, OptionalTensor bias, OptionalTensor residual,
    std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation, std::string activation,
    std::vector<bool> mask) {
  STD_TORCH_CHECK(mask.size() == 4 && (!mask[2] || bias), "fastcnn: ", kOp,
                  "_backward: mask takes 4 values, bias a tensor where it is masked");
  check_beside(kOp, x, x, "x");
  check_like(kOp, weight, x, "weight");
  check_like(kOp, grad, x, "grad");
  const DeviceOf device(x);
  const ConvGeometry g = conv_geometry(x, weight, stride, padding, dilation, x.size(1));
  check_shape(grad, g, "grad");
  const Activation kind = activation_of(activation);
  const Dtype dtype = dtype_of(x);
  OptionalTensor shift, dense_residual;
  if (bias) {
    check_beside(kOp, *bias, x, "bias");
    STD_TORCH_CHECK(bias->numel() == g.O, "fastcnn: ", kOp, ": bias must have one element per output channel");
    shift = as_accumulator(*bias, dtype);
  }
  const bool through = kind != Activation::kIdentity;
  if (residual) {
    check_like(kOp, *residual, x, "residual");
    check_shape(*residual, g, "residual");
    if (through) dense_residual = as_layout(*residual, g.layout);
  }
  const Tensor dense_grad = as_layout(grad, g.layout), dense_x = as_layout(x, g.layout);
  const Tensor dense_weight = as_contiguous(weight);
  Tensor grad_z = dense_grad;
  if (through || mask[3]) grad_z = empty_4d(x, g.N, g.O, g.Ho, g.Wo, g.layout);
  if (mask[3] && !through) torch::stable::copy_(grad_z, grad);
  const Tensor grad_x = mask[0] ? empty_4d(x, g.N, g.C, g.H, g.W, g.layout) : no_tensor(x);
  Tensor grad_weight = mask[1] ? empty_4d(x, g.O, 1, g.kH, g.kW, Layout::kNCHW) : no_tensor(x);
  Tensor grad_bias = mask[2] ? empty_1d(*shift, g.O) : no_tensor(x);
  if (grad_z.numel() == 0) {  // sums over nothing
    torch::stable::zero_(grad_weight);
    torch::stable::zero_(grad_bias);
  } else {
    dispatch_dtype(dtype, [&](auto tag) {
      using S = typename decltype(tag)::type;
      using A = Accumulator<S>;
      if (through) {
        const DepthwiseTensors<S> tensors = {data<S>(dense_x),
                                             data<S>(dense_weight),
                                             nullptr,
                                             static_cast<const A*>(data(shift)),
                                             static_cast<const S*>(data(dense_residual)),
                                             static_cast<S*>(mutable_data(grad_z)),
                                             data<S>(dense_grad)};
        check_launch(kOp, launch_depthwise_conv2d<S, true>(tensors, g, kind, device.stream()));
      }
      const Tensor partials = empty_1d(x, depthwise_partials<S>(g, mask[1], mask[2]),
                                       dtype == Dtype::kFloat64 ? torch::headeronly::ScalarType::Double
                                                                : torch::headeronly::ScalarType::Float);
      const auto wanted = [](const Tensor& t) { return t.numel() > 0 ? mutable_data(t) : nullptr; };
      const DepthwiseGradients<S> gradients = {data<S>(grad_z),
                                               data<S>(dense_x),
                                               data<S>(dense_weight),
                                               static_cast<S*>(wanted(grad_x)),
                                               static_cast<S*>(wanted(grad_weight)),
                                               static_cast<A*>(wanted(grad_bias)),
                                               static_cast<A*>(wanted(partials))};
      check_launch(kOp, launch_depthwise_conv2d_backward(gradients, g, device.stream()));
    });
  }
  if (mask[2] && grad_bias.scalar_type() != bias->scalar_type()) {
    Tensor rounded = empty_1d(*bias, g.O);
    grad_bias = torch::stable::copy_(rounded, grad_bias);
  }
  return {grad_x, grad_weight, grad_bias, mask[3] ? grad_z : no_tensor(x)};
}

}  // namespace fastcnn

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CUDA, m) {
  m.impl("depthwise_conv2d_backward", TORCH_BOX(&fastcnn::depthwise_conv2d_backward_cuda));
}
