// SPDX-License-Identifier: Apache-2.0
// The part of squeeze-and-excitation that the entry functions of se_scale and se_gate share.
#pragma once

#include <string>

#include "tensor.h"

namespace fastcnn {

struct SeGates {
  Tensor x;              // dense in its layout
  Tensor pooled, scale;  // [N, C], accumulator type: the mean of x, and what se_scale multiplies x by
};

SeGates se_gates(const Tensor& x, const Tensor& w1, const Tensor& b1, const Tensor& w2, const Tensor& b2,
                 const std::string& activation, const std::string& gate);

}  // namespace fastcnn
