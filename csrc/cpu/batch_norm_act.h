// SPDX-License-Identifier: Apache-2.0
// Batch norm with residual and activation. Every per-channel vector (scale, shift, mean, invstd, weight, bias and their gradients) is in the
// accumulator type of `dtype`; x, residual, y and their gradients are dense in `layout`, [N, C, HW] or [N, HW, C].
#pragma once

#include "../common/epilogue.h"
#include "../common/shape.h"
#include "isa.h"

namespace fastcnn {

// y = act(x * scale[c] + shift[c] + residual). CPU: y may be x or residual. CUDA: scale and shift may be null, 1 and 0.
struct BatchNormActArgs {
  Dtype dtype;
  Activation activation;
  Layout layout;
  int64_t N, C, HW;
  const void* x;
  const void* scale;
  const void* shift;
  const void* residual;  // null: none
  void* y;
};

// scale = weight * invstd, shift = bias - mean * scale, computed in double.
struct BatchNormFoldArgs {
  Dtype dtype;
  int64_t C;
  const void* weight;    // null: 1
  const void* bias;      // null: 0
  const void* mean;
  const void* variance;  // null: invstd is given
  const void* invstd;
  double eps;
  void* scale;
  void* shift;
};

// The batch's mean and 1 / sqrt(biased variance + eps), and the running vectors moved towards mean and unbiased variance.
struct BatchNormStatisticsArgs {
  Dtype dtype;
  Layout layout;
  int64_t N, C, HW;
  const void* x;
  double momentum, eps;
  const void* running_mean;  // null: no running vectors
  const void* running_var;
  void* mean;
  void* invstd;
  void* new_mean;
  void* new_var;
  double* scratch;           // batch_norm_scratch(N, C, HW) values
};

// With z = x * scale + shift + residual and gz = grad * act'(z): the sums of gz and gz * xhat, then grad_x.
struct BatchNormActBackwardArgs {
  Dtype dtype;
  Activation activation;
  Layout layout;
  int64_t N, C, HW;
  bool training;
  const void* grad;
  const void* x;
  const void* residual;  // null: none
  const void* scale;
  const void* shift;
  const void* mean;
  const void* invstd;
  void* grad_x;          // null: not wanted
  void* grad_weight;     // sum of gz * xhat; null: not wanted
  void* grad_bias;       // sum of gz; null: not wanted
  void* grad_residual;   // gz; null: not wanted
  double* scratch;       // batch_norm_scratch(N, C, HW) values
};

#if defined(__CUDACC__)
int64_t batch_norm_scratch(int64_t N, int64_t C, int64_t HW);  // of the CUDA kernels: csrc/cuda/batch_norm_act.cu
#else
inline namespace FASTCNN_ISA {

// Sums over the N * HW pixels of a channel are split into segments by shape alone, so that neither threads nor runs change a bit.
FASTCNN_INLINE int64_t batch_norm_segments(int64_t N, int64_t C, int64_t HW) {
  constexpr int64_t kElements = 65536, kPixels = 64, kMost = 64;
  const int64_t by_size = N * HW * C / kElements, by_pixels = N * HW / kPixels;
  const int64_t wanted = by_size < by_pixels ? by_size : by_pixels;
  return wanted < 1 ? 1 : wanted > kMost ? kMost : wanted;
}

constexpr int64_t kBatchNormRows = 5;  // vectors of C values that a segment works in

FASTCNN_INLINE int64_t batch_norm_scratch(int64_t N, int64_t C, int64_t HW) { return batch_norm_segments(N, C, HW) * kBatchNormRows * C; }

}  // namespace FASTCNN_ISA
#endif
}  // namespace fastcnn

FASTCNN_KERNEL(batch_norm_act_forward_kernel, BatchNormActArgs)
FASTCNN_KERNEL(batch_norm_fold_kernel, BatchNormFoldArgs)
FASTCNN_KERNEL(batch_norm_statistics_kernel, BatchNormStatisticsArgs)
FASTCNN_KERNEL(batch_norm_act_backward_kernel, BatchNormActBackwardArgs)
