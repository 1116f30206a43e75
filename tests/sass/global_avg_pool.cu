// SPDX-License-Identifier: Apache-2.0
#include "../../csrc/cuda/global_avg_pool.cuh"

namespace fastcnn {
template cudaError_t launch_global_avg_pool(const PlanePlan&, const float*, float*, float*, cudaStream_t);
template cudaError_t launch_global_avg_pool(const PlanePlan&, const Half*, float*, Half*, cudaStream_t);
template cudaError_t launch_global_avg_pool(const PlanePlan&, const BFloat16*, float*, BFloat16*, cudaStream_t);
template cudaError_t launch_global_avg_pool(const PlanePlan&, const double*, double*, double*, cudaStream_t);
#define FASTCNN_BACKWARD(S)                                                                              \
  template cudaError_t launch_global_avg_pool_backward(Layout, int64_t, int64_t, int64_t, const S*, S*, \
                                                       cudaStream_t);
FASTCNN_BACKWARD(float)
FASTCNN_BACKWARD(Half)
FASTCNN_BACKWARD(BFloat16)
FASTCNN_BACKWARD(double)
}  // namespace fastcnn
