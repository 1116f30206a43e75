// SPDX-License-Identifier: Apache-2.0
#include "../../csrc/cuda/hardswish.cuh"

namespace fastcnn {
template cudaError_t launch_hardswish(const float*, const float*, float*, int64_t, cudaStream_t);
template cudaError_t launch_hardswish(const Half*, const Half*, Half*, int64_t, cudaStream_t);
template cudaError_t launch_hardswish(const BFloat16*, const BFloat16*, BFloat16*, int64_t, cudaStream_t);
template cudaError_t launch_hardswish(const double*, const double*, double*, int64_t, cudaStream_t);
}  // namespace fastcnn
