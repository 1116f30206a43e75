// SPDX-License-Identifier: Apache-2.0
#include "kernels.h"
#include "tile.h"

namespace fastcnn {
namespace plan {
inline namespace FASTCNN_ISA {

const Kernels& plan_kernels() {
  static const Kernels kernels{kLanes, {kPointwise, kConv, kDepthwise, kGlobalPool, kPool, kElementwise, kShuffle, kInvertedResidual,
                                 pointwise_bf16(), conv_bf16(), kGrouped}};
  return kernels;
}

}  // namespace FASTCNN_ISA
}  // namespace plan
}  // namespace fastcnn
