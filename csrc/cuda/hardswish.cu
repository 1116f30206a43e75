// SPDX-License-Identifier: Apache-2.0
// h-swish as an op of its own; activation.cu launches its kernel.
#include "../cpu/elementwise.h"
#include "on_device.h"

namespace fastcnn {
namespace {

struct Forward {
  static constexpr const char* kName = "hardswish";
  static constexpr const char* kTensors[] = {"x"};
};
struct Backward {
  static constexpr const char* kName = "hardswish_backward";
  static constexpr const char* kTensors[] = {"grad", "x"};
};

}  // namespace

Tensor hardswish_cuda(const Tensor& x) { return apply_activation(x, Activation::kHardSwish); }

Tensor hardswish_backward_cuda(const Tensor& grad, const Tensor& x) {
  return apply_activation_backward(grad, x, Activation::kHardSwish);
}

}  // namespace fastcnn

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CUDA, m) {
  using namespace fastcnn;
  m.impl("hardswish", TORCH_BOX((&OnDevice<Forward, &hardswish_cuda>::call)));
  m.impl("hardswish_backward", TORCH_BOX((&OnDevice<Backward, &hardswish_backward_cuda>::call)));
}
