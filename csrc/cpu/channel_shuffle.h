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

}  // namespace fastcnn

FASTCNN_KERNEL(channel_shuffle_kernel, ChannelShuffleArgs)
