// SPDX-License-Identifier: Apache-2.0
// The entry function is the CPU's (csrc/cpu/pointwise_conv2d_entry.h). Prologue and gate are a pass over x each, with
// the kernels of batch_norm_act and se_scale; then the convolution is conv_bn_act's. Where memory decides, the table of
// fastcnn/_dispatch.py calls Triton's product, which does it all as it loads x.
#include "../cpu/pointwise_conv2d_entry.h"
#include "on_device.h"
#include "se_scale_host.h"

namespace fastcnn {

Tensor convolve_changed(const Convolution& c, const Change& change, const OptionalTensor& bias,
                        const OptionalTensor& residual, Activation activation) {
  const ConvGeometry& g = c.g;
  Convolution changed = c;
  if (c.x.numel() > 0 && (change.scale || change.activation != Activation::kIdentity)) {
    changed.x = empty_4d(c.x, g.N, g.C, g.H, g.W, g.layout);
    batch_norm_act_forward_kernel_dispatch({dtype_of(c.x), change.activation, g.layout, g.N, g.C, g.H * g.W, data(c.x),
                                            data(change.scale), data(change.shift), nullptr, mutable_data(changed.x)});
  }
  if (change.gate) changed.x = se_scaled("pointwise_conv2d", changed.x, g.layout, *change.gate);
  return convolve(changed, std::nullopt, bias, residual, activation);
}

namespace {

struct Forward {
  static constexpr const char* kName = "pointwise_conv2d";
  static constexpr const char* kTensors[] = {"x", "weight", "bias", "residual", "gate", "scale", "shift"};
};

}  // namespace
}  // namespace fastcnn

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CUDA, m) {
  using namespace fastcnn;
  m.impl("pointwise_conv2d", TORCH_BOX((&OnDevice<Forward, &pointwise_conv2d_entry>::call)));
}
