// SPDX-License-Identifier: Apache-2.0
// The entry functions are those of the CPU (csrc/cpu/conv_bn_act_entry.h). A depthwise convolution carries scale,
// shift, residual and activation in its epilogue; every other one is ATen's, followed by the pass of batch_norm_act.
#include "../cpu/conv_bn_act_entry.h"
#include "../cpu/depthwise_conv2d_host.h"
#include "on_device.h"

namespace fastcnn {

Convolution plan_convolution(const Tensor& x, const Tensor& weight, const std::vector<int64_t>& stride,
                             const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t groups,
                             bool) {
  STD_TORCH_CHECK(x.scalar_type() == weight.scalar_type(), "fastcnn: weight must have the dtype of x");
  const ConvGeometry g = conv_geometry(x, weight, stride, padding, dilation, groups);
  // of one channel: a dense convolution to ATen
  const ConvKind kind = groups == g.C && g.C > 1 ? ConvKind::kDepthwise : ConvKind::kOther;
  return {g, kind, as_layout(x, g.layout), weight};
}

Tensor convolve(const Convolution& c, const OptionalTensor& scale, const OptionalTensor& shift,
                const OptionalTensor& residual, Activation activation) {
  if (c.kind == ConvKind::kDepthwise)
    return depthwise_forward(c.x, c.weight, c.g, data(scale), data(shift), residual, activation);
  const Tensor z = aten_convolution(c);
  if (!scale && !shift && !residual && activation == Activation::kIdentity) return z;
  const Tensor y = fresh_like(z);  // not in place: the kernel's loads take what they read for constant
  const Planes p = planes_of(z);
  if (y.numel() > 0)
    batch_norm_act_forward_kernel_dispatch({dtype_of(z), activation, c.g.layout, p.N, p.C, p.HW, data(z), data(scale),
                                            data(shift), data(residual), mutable_data(y)});
  return y;
}

ConvGradients convolution_gradients(const Convolution& c, const Tensor& weight, const Tensor& grad, bool for_x,
                                    bool for_weight) {
  return aten_gradients(c, weight, grad, for_x, for_weight);
}

namespace {

struct Eval {
  static constexpr const char* kName = "conv_bn_act";
  static constexpr const char* kTensors[] = {"x",       "weight",       "bias",        "bn_weight",
                                             "bn_bias", "running_mean", "running_var", "residual"};
};
struct Train {
  static constexpr const char* kName = "conv_bn_act_train";
  static constexpr const char* kTensors[] = {"x",       "weight",       "bias",        "bn_weight",
                                             "bn_bias", "running_mean", "running_var", "residual"};
};
struct Backward {
  static constexpr const char* kName = "conv_bn_act_backward";
  static constexpr const char* kTensors[] = {"grad",      "x",       "weight", "z",      "bias",
                                             "bn_weight", "bn_bias", "mean",   "invstd", "residual"};
};

}  // namespace
}  // namespace fastcnn

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CUDA, m) {
  using namespace fastcnn;
  m.impl("conv_bn_act", TORCH_BOX((&OnDevice<Eval, &conv_bn_act_entry>::call)));
  m.impl("conv_bn_act_train", TORCH_BOX((&OnDevice<Train, &conv_bn_act_train_entry>::call)));
  m.impl("conv_bn_act_backward", TORCH_BOX((&OnDevice<Backward, &conv_bn_act_backward_entry>::call)));
}
