// SPDX-License-Identifier: Apache-2.0
#include "depthwise_conv2d.cuh"

#include "../common/dispatch.h"
#include "../cpu/depthwise_conv2d_host.h"
#include "entry.h"

namespace fastcnn {
namespace {

constexpr char kOp[] = "depthwise_conv2d";

}  // namespace

Tensor depthwise_forward(const Tensor& x, const Tensor& weight, const ConvGeometry& g, const void* scale,
                         const void* shift, const OptionalTensor& residual, Activation activation) {
  OptionalTensor dense_residual;
  if (residual) {
    STD_TORCH_CHECK(residual->dim() == 4 && residual->size(0) == g.N && residual->size(1) == g.O &&
                        residual->size(2) == g.Ho && residual->size(3) == g.Wo,
                    "fastcnn: ", kOp, ": residual must have the shape of the output");
    dense_residual = as_layout(*residual, g.layout);
  }
  Tensor y = empty_4d(x, g.N, g.O, g.Ho, g.Wo, g.layout);
  if (y.numel() == 0) return y;
  const Tensor dense_x = as_layout(x, g.layout), dense_weight = as_contiguous(weight);
  dispatch_dtype(dtype_of(x), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using A = Accumulator<S>;
    const DepthwiseTensors<S> tensors = {data<S>(dense_x),
                                         data<S>(dense_weight),
                                         static_cast<const A*>(scale),
                                         static_cast<const A*>(shift),
                                         static_cast<const S*>(data(dense_residual)),
                                         static_cast<S*>(mutable_data(y))};
    check_launch(kOp, launch_depthwise_conv2d(tensors, g, activation, current_stream()));
  });
  return y;
}

Tensor depthwise_conv2d_cuda(const Tensor& x, const Tensor& weight, OptionalTensor bias, OptionalTensor residual,
                             std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
                             std::string activation) {
  check_beside(kOp, x, x, "x");
  check_like(kOp, weight, x, "weight");
  const DeviceOf device(x);
  const ConvGeometry g = conv_geometry(x, weight, stride, padding, dilation, x.size(1));
  OptionalTensor shift;
  if (bias) {
    check_beside(kOp, *bias, x, "bias");
    STD_TORCH_CHECK(bias->numel() == g.O, "fastcnn: ", kOp, ": bias must have one element per output channel");
    shift = as_accumulator(*bias, dtype_of(x));
  }
  if (residual) check_like(kOp, *residual, x, "residual");
  return depthwise_forward(x, weight, g, nullptr, data(shift), residual, activation_of(activation));
}

}  // namespace fastcnn

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CUDA, m) { m.impl("depthwise_conv2d", TORCH_BOX(&fastcnn::depthwise_conv2d_cuda)); }
