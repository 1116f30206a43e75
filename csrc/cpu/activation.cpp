// SPDX-License-Identifier: Apache-2.0
#include "activation.h"

#include "elementwise.h"

namespace fastcnn {

Tensor activation_cpu(const Tensor& x, std::string kind) { return apply_activation(x, activation_of(kind)); }

Tensor activation_backward_cpu(const Tensor& grad, const Tensor& x, std::string kind) {
  return apply_activation_backward(grad, x, activation_of(kind));
}

}  // namespace fastcnn

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CPU, m) {
  m.impl("activation", TORCH_BOX(&fastcnn::activation_cpu));
  m.impl("activation_backward", TORCH_BOX(&fastcnn::activation_backward_cpu));
}
