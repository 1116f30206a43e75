// SPDX-License-Identifier: Apache-2.0
#include "depthwise_conv2d.cuh"

#include "../common/dispatch.h"
#include "entry.h"

namespace fastcnn {
namespace {

constexpr char kOp[] = "depthwise_conv2d";

void check_beside(const Tensor& tensor, const Tensor& x, const char* name) {
  STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == x.get_device_index(), "fastcnn: ", kOp, ": ", name,
                  " must be on the device of x");
}

void check_like(const Tensor& tensor, const Tensor& x, const char* name) {
  check_beside(tensor, x, name);
  STD_TORCH_CHECK(tensor.scalar_type() == x.scalar_type(), "fastcnn: ", kOp, ": ", name, " must have the dtype of x");
}

}  // namespace

Tensor depthwise_conv2d_cuda(const Tensor& x, const Tensor& weight, OptionalTensor bias, OptionalTensor residual,
                             std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
                             std::string activation) {
  check_beside(x, x, "x");
  check_like(weight, x, "weight");
  const DeviceOf device(x);
  const ConvGeometry g = conv_geometry(x, weight, stride, padding, dilation, x.size(1));
  const Activation kind = activation_of(activation);
  const Dtype dtype = dtype_of(x);
  OptionalTensor shift, dense_residual;
  if (bias) {
    check_beside(*bias, x, "bias");
    STD_TORCH_CHECK(bias->numel() == g.O, "fastcnn: ", kOp, ": bias must have one element per output channel");
    shift = as_accumulator(*bias, dtype);
  }
  if (residual) {
    check_like(*residual, x, "residual");
    STD_TORCH_CHECK(residual->dim() == 4 && residual->size(0) == g.N && residual->size(1) == g.O &&
                        residual->size(2) == g.Ho && residual->size(3) == g.Wo,
                    "fastcnn: ", kOp, ": residual must have the shape of the output");
    dense_residual = as_layout(*residual, g.layout);
  }
  Tensor y = empty_4d(x, g.N, g.O, g.Ho, g.Wo, g.layout);
  if (y.numel() == 0) return y;
  const Tensor dense_x = as_layout(x, g.layout), dense_weight = as_contiguous(weight);
  dispatch_dtype(dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    const DepthwiseTensors<S> tensors = {data<S>(dense_x),
                                         data<S>(dense_weight),
                                         nullptr,
                                         static_cast<const Accumulator<S>*>(data(shift)),
                                         static_cast<const S*>(data(dense_residual)),
                                         static_cast<S*>(mutable_data(y))};
    check_launch(kOp, launch_depthwise_conv2d(tensors, g, kind, device.stream()));
  });
  return y;
}

}  // namespace fastcnn

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CUDA, m) { m.impl("depthwise_conv2d", TORCH_BOX(&fastcnn::depthwise_conv2d_cuda)); }
