// SPDX-License-Identifier: Apache-2.0
// What se_scale.cu gives to the other entry functions: the parts of squeeze-and-excitation. The device of x is current.
#pragma once

#include <string>

#include "../cpu/tensor.h"

namespace fastcnn {

struct SeGates {
  Tensor x;              // dense in its layout
  Tensor pooled, scale;  // [N, C], accumulator type: the mean of x, and what se_scale multiplies x by
};

SeGates se_gates(const char* op, const Tensor& x, const Tensor& w1, const Tensor& b1, const Tensor& w2,
                 const Tensor& b2, const std::string& activation, const std::string& gate);

// The same from sums of x, [N, tiles, C] of the accumulator type, which whoever wrote x has left: x is not read.
SeGates se_gates_of_sums(const char* op, const Tensor& x, const Tensor& sums, const Tensor& w1, const Tensor& b1,
                         const Tensor& w2, const Tensor& b2, const std::string& activation, const std::string& gate);

// x * scale[n, c]; x is dense in the layout, scale of the accumulator type.
Tensor se_scaled(const char* op, const Tensor& x, Layout layout, const Tensor& scale);

}  // namespace fastcnn
