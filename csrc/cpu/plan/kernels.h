// SPDX-License-Identifier: Apache-2.0
// The kernels of this instruction set, by name; kernels.kernel.cpp puts them into the executor's table.
#pragma once

#include <algorithm>

#include "../../common/namespace.h"
#include "step.h"

namespace fastcnn {
namespace plan {
inline namespace FASTCNN_ISA {

extern const Kernel kPointwise, kConv, kDepthwise, kGlobalPool, kPool, kElementwise, kShuffle, kInvertedResidual, kGrouped;

// Without `run` where the processor has no matrix unit for bfloat16: asked at the first call, never while the library loads.
Kernel pointwise_bf16();
Kernel conv_bf16();

}  // namespace FASTCNN_ISA
}  // namespace plan
}  // namespace fastcnn
