// SPDX-License-Identifier: Apache-2.0
#include "depthwise_conv2d.cuh"

#include "../common/dispatch.h"
#include "../cpu/depthwise_conv2d_host.h"
#include "depthwise_conv2d_sums.h"
#include "entry.h"

namespace fastcnn {
namespace {

constexpr char kOp[] = "depthwise_conv2d";

// sums: where they are wanted, of the squeeze (DepthwiseTensors::sums); stays empty where no kernel computes them.
Tensor run(const Tensor& x, const Tensor& weight, const ConvGeometry& g, const void* scale, const void* shift,
           const OptionalTensor& residual, Activation activation, OptionalTensor* sums) {
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
    DepthwiseTensors<S> tensors = {data<S>(dense_x),
                                   data<S>(dense_weight),
                                   static_cast<const A*>(scale),
                                   static_cast<const A*>(shift),
                                   static_cast<const S*>(data(dense_residual)),
                                   static_cast<S*>(mutable_data(y))};
    const int64_t tiles = sums == nullptr ? 0 : depthwise_sum_tiles(tensors, g);
    if (tiles > 0) {
      *sums = torch::stable::new_empty(x, {g.N, tiles, g.O}, torch::headeronly::ScalarType::Float);
      tensors.sums = static_cast<float*>(mutable_data(**sums));
    }
    check_launch(kOp, launch_depthwise_conv2d(tensors, g, activation, current_stream()));
  });
  return y;
}

// The op, on the device of x, which is current.
Tensor convolve(const char* op, const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                const OptionalTensor& residual, const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                const std::vector<int64_t>& dilation, const std::string& activation, OptionalTensor* sums) {
  check_like(op, weight, x, "weight");
  const ConvGeometry g = conv_geometry(x, weight, stride, padding, dilation, x.size(1));
  OptionalTensor shift;
  if (bias) {
    check_beside(op, *bias, x, "bias");
    STD_TORCH_CHECK(bias->numel() == g.O, "fastcnn: ", op, ": bias must have one element per output channel");
    shift = as_accumulator(*bias, dtype_of(x));
  }
  if (residual) check_like(op, *residual, x, "residual");
  return run(x, weight, g, nullptr, data(shift), residual, activation_of(activation), sums);
}

}  // namespace

Tensor depthwise_forward(const Tensor& x, const Tensor& weight, const ConvGeometry& g, const void* scale,
                         const void* shift, const OptionalTensor& residual, Activation activation) {
  return run(x, weight, g, scale, shift, residual, activation, nullptr);
}

DepthwiseWithSums depthwise_with_sums(const char* op, const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                      const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                      const std::vector<int64_t>& dilation, const std::string& activation) {
  OptionalTensor sums;
  const Tensor y = convolve(op, x, weight, bias, std::nullopt, stride, padding, dilation, activation, &sums);
  return {y, sums};
}

Tensor depthwise_conv2d_cuda(const Tensor& x, const Tensor& weight, OptionalTensor bias, OptionalTensor residual,
                             std::vector<int64_t> stride, std::vector<int64_t> padding, std::vector<int64_t> dilation,
                             std::string activation) {
  check_beside(kOp, x, x, "x");
  const DeviceOf device(x);
  return convolve(kOp, x, weight, bias, residual, stride, padding, dilation, activation, nullptr);
}

}  // namespace fastcnn

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CUDA, m) { m.impl("depthwise_conv2d", TORCH_BOX(&fastcnn::depthwise_conv2d_cuda)); }
