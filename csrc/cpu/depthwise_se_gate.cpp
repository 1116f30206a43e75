// SPDX-License-Identifier: Apache-2.0
// The kernels are those of depthwise_conv2d and se_gate: here the map is read once more for its means, out of the cache
// where it fits.
#include <tuple>

#include "depthwise_conv2d_host.h"
#include "se_scale_host.h"

namespace fastcnn {

std::tuple<Tensor, Tensor> depthwise_se_gate_cpu(const Tensor& x, const Tensor& weight, OptionalTensor bias,
                                                 const Tensor& w1, const Tensor& b1, const Tensor& w2, const Tensor& b2,
                                                 std::vector<int64_t> stride, std::vector<int64_t> padding,
                                                 std::vector<int64_t> dilation, std::string activation,
                                                 std::string squeeze, std::string gate) {
  const Tensor y = depthwise_conv2d_cpu(x, weight, bias, std::nullopt, stride, padding, dilation, activation);
  return {y, se_gates(y, w1, b1, w2, b2, squeeze, gate).scale};
}

}  // namespace fastcnn

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CPU, m) {
  m.impl("depthwise_se_gate", TORCH_BOX(&fastcnn::depthwise_se_gate_cpu));
}
