// SPDX-License-Identifier: Apache-2.0
// The kernels of this instruction set, by name; kernels.kernel.cpp puts them into the executor's table.
#pragma once

#include <algorithm>

#include "../../common/namespace.h"
#include "step.h"

namespace fastcnn {
namespace plan {
inline namespace FASTCNN_ISA {

extern const Kernel kPointwise, kConv, kDepthwise, kGlobalPool, kPool, kElementwise, kShuffle, kInvertedResidual;

}  // namespace FASTCNN_ISA
}  // namespace plan
}  // namespace fastcnn
