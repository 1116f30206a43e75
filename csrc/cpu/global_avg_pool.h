// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "../common/shape.h"
#include "isa.h"

namespace fastcnn {

// The mean of each plane of x, [N, C], in x's dtype (y) or in the accumulator type (wide); the other is null.
struct GlobalAvgPoolArgs {
  Dtype dtype;
  Layout layout;
  int64_t N, C, HW;
  const void* x;
  void* y;
  void* wide;
  double* scratch;  // plane_sum_scratch(layout, N, C, HW) values
};

// grad_x = grad[n, c] / HW.
struct GlobalAvgPoolBackwardArgs {
  Dtype dtype;
  Layout layout;
  int64_t N, C, HW;
  const void* grad;
  void* grad_x;
};

inline namespace FASTCNN_ISA {

// NHWC: parts that the pixels of a sample are split into, by shape alone; each thread takes some.
FASTCNN_INLINE int64_t plane_segments(Layout layout, int64_t C, int64_t HW) {
  constexpr int64_t kElements = 65536, kMost = 8;
  if (layout == Layout::kNCHW) return 1;
  const int64_t wanted = C * HW / kElements, most = HW < kMost ? HW : kMost;
  return wanted < 1 ? 1 : wanted > most ? most : wanted;
}

FASTCNN_INLINE int64_t plane_sum_scratch(Layout layout, int64_t N, int64_t C, int64_t HW) {
  const int64_t segments = plane_segments(layout, C, HW);
  return segments > 1 ? segments * N * C : 0;
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn

FASTCNN_KERNEL(global_avg_pool_forward_kernel, GlobalAvgPoolArgs)
FASTCNN_KERNEL(global_avg_pool_backward_kernel, GlobalAvgPoolBackwardArgs)
