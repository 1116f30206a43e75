// SPDX-License-Identifier: Apache-2.0
// h-swish as an op of its own: the activation kernel with the functor fixed.
#include "elementwise.h"

namespace fastcnn {

Tensor hardswish_cpu(const Tensor& x) { return apply_activation(x, Activation::kHardSwish); }

Tensor hardswish_backward_cpu(const Tensor& grad, const Tensor& x) { return apply_activation_backward(grad, x, Activation::kHardSwish); }

}  // namespace fastcnn

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CPU, m) {
  m.impl("hardswish", TORCH_BOX(&fastcnn::hardswish_cpu));
  m.impl("hardswish_backward", TORCH_BOX(&fastcnn::hardswish_backward_cpu));
}
