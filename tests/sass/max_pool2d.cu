// SPDX-License-Identifier: Apache-2.0
#include "../../csrc/cuda/max_pool2d.cuh"

namespace fastcnn {
#define FASTCNN_POOL(S)                                                                       \
  template cudaError_t launch_max_pool2d(const PoolGeometry&, const S*, S*, cudaStream_t, int64_t); \
  template cudaError_t launch_max_pool2d_backward(const PoolGeometry&, const S*, const S*, S*, cudaStream_t, int64_t);
FASTCNN_POOL(float)
FASTCNN_POOL(Half)
FASTCNN_POOL(BFloat16)
FASTCNN_POOL(double)
}  // namespace fastcnn
