// SPDX-License-Identifier: Apache-2.0
// The kernels are se_scale's.
#include "entry.h"
#include "se_scale_host.h"

namespace fastcnn {

Tensor se_gate_cuda(const Tensor& x, const Tensor& w1, const Tensor& b1, const Tensor& w2, const Tensor& b2,
                    std::string activation, std::string gate) {
  constexpr char kOp[] = "se_gate";
  check_beside(kOp, x, x, "x");
  const DeviceOf device(x);
  return se_gates(kOp, x, w1, b1, w2, b2, activation, gate).scale;
}

}  // namespace fastcnn

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CUDA, m) { m.impl("se_gate", TORCH_BOX(&fastcnn::se_gate_cuda)); }
