// SPDX-License-Identifier: Apache-2.0
// Squeeze-and-excitation. Weights, biases, pooled means and all scratch are in the accumulator type of `dtype`; matrices are row-major:
// w1 [R, C], w2 [C, R], pooled [N, C].
#pragma once

#include "../common/epilogue.h"
#include "../common/shape.h"
#include "isa.h"

namespace fastcnn {

// h = act(w1 pooled + b1), scale = gate(w2 h + b2).
struct SeGateArgs {
  Dtype dtype;
  Activation activation, gate;
  int64_t N, C, R;
  const void *pooled, *w1, *b1, *w2, *b2;
  void* hidden;  // [N, R]
  void* scale;   // [N, C]
};

// y = x * scale[n, c]
struct SeScaleArgs {
  Dtype dtype;
  Layout layout;
  int64_t N, C, HW;
  const void *x, *scale;
  void* y;
};

struct SeScaleBackwardArgs {
  Dtype dtype;
  Activation activation, gate;
  Layout layout;
  int64_t N, C, R, HW;
  const void *grad, *x, *pooled, *w1, *b1, *w2, *b2;
  void *grad_x, *grad_w1, *grad_b1, *grad_w2, *grad_b2;
  void* scratch;     // se_scale_backward_scratch(N, C, R) accumulators
  double* sums;      // plane_sum_scratch(layout, N, C, HW) values
};

inline int64_t se_scale_backward_scratch(int64_t N, int64_t C, int64_t R) { return N * (4 * C + 3 * R); }

}  // namespace fastcnn

FASTCNN_KERNEL(se_gate_forward_kernel, SeGateArgs)
FASTCNN_KERNEL(se_scale_forward_kernel, SeScaleArgs)
FASTCNN_KERNEL(se_scale_backward_kernel, SeScaleBackwardArgs)
