// SPDX-License-Identifier: Apache-2.0
// The depthwise convolution as depthwise_se_gate calls it: with the sums that its kernel leaves for the squeeze.
#pragma once

#include <string>
#include <vector>

#include "../cpu/tensor.h"

namespace fastcnn {

struct DepthwiseWithSums {
  Tensor y;
  OptionalTensor sums;  // [N, tiles, C] in float32, of y over parts of each image; none where no kernel computes them
};

// The device of x is current; op is named in errors.
DepthwiseWithSums depthwise_with_sums(const char* op, const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                                      const std::vector<int64_t>& stride, const std::vector<int64_t>& padding,
                                      const std::vector<int64_t>& dilation, const std::string& activation);

}  // namespace fastcnn
