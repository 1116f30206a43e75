// SPDX-License-Identifier: Apache-2.0
// The kernels are those of depthwise_conv2d and se_scale: the first leaves the sums that the second's gate takes, so that
// nothing reads the map for its means.
#include <tuple>

#include "depthwise_conv2d_sums.h"
#include "entry.h"
#include "se_scale_host.h"

namespace fastcnn {

std::tuple<Tensor, Tensor> depthwise_se_gate_cuda(const Tensor& x, const Tensor& weight, OptionalTensor bias,
                                                  const Tensor& w1, const Tensor& b1, const Tensor& w2,
                                                  const Tensor& b2, std::vector<int64_t> stride,
                                                  std::vector<int64_t> padding, std::vector<int64_t> dilation,
                                                  std::string activation, std::string squeeze, std::string gate) {
  constexpr char kOp[] = "depthwise_se_gate";
  check_beside(kOp, x, x, "x");
  const DeviceOf device(x);
  const DepthwiseWithSums found = depthwise_with_sums(kOp, x, weight, bias, stride, padding, dilation, activation);
  const SeGates gates = found.sums ? se_gates_of_sums(kOp, found.y, *found.sums, w1, b1, w2, b2, squeeze, gate)
                                   : se_gates(kOp, found.y, w1, b1, w2, b2, squeeze, gate);
  return {found.y, gates.scale};
}

}  // namespace fastcnn

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CUDA, m) {
  m.impl("depthwise_se_gate", TORCH_BOX(&fastcnn::depthwise_se_gate_cuda));
}
