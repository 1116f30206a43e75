// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "../common/shape.h"
#include "isa.h"

namespace fastcnn {

// y[i * groups + g] = x[g * (C / groups) + i] over the channels of [N, C, HW] or [N, HW, C]; a copy of bits, so dtype stands for its width only.
struct ChannelShuffleArgs {
  Dtype dtype;
  Layout layout;
  int64_t N, C, HW, groups;
  const void* x;
  void* y;
};

// y[2 i] = x1[i], y[2 i + 1] = x2[i] over the C channels of each input; y has 2 C.
struct ChannelShuffleConcatArgs {
  Dtype dtype;
  Layout layout;
  int64_t N, C, HW;
  const void* x1;
  int64_t stride1;  // elements from pixel to pixel (NHWC, at least C), from image to image (NCHW, at least C HW)
  const void* x2;
  int64_t stride2;
  void* y;
};

}  // namespace fastcnn

FASTCNN_KERNEL(channel_shuffle_kernel, ChannelShuffleArgs)
FASTCNN_KERNEL(channel_shuffle_concat_kernel, ChannelShuffleConcatArgs)
