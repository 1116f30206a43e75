// SPDX-License-Identifier: Apache-2.0
// The kernels are se_scale's.
#include "se_scale_host.h"

namespace fastcnn {

Tensor se_gate_cpu(const Tensor& x, const Tensor& w1, const Tensor& b1, const Tensor& w2, const Tensor& b2,
                   std::string activation, std::string gate) {
  return se_gates(x, w1, b1, w2, b2, activation, gate).scale;
}

}  // namespace fastcnn

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CPU, m) { m.impl("se_gate", TORCH_BOX(&fastcnn::se_gate_cpu)); }
