// SPDX-License-Identifier: Apache-2.0
#include "../../csrc/cuda/activation.cuh"

namespace fastcnn {
template cudaError_t launch_activation(Activation, const float*, const float*, float*, int64_t, cudaStream_t);
template cudaError_t launch_activation(Activation, const Half*, const Half*, Half*, int64_t, cudaStream_t);
template cudaError_t launch_activation(Activation, const BFloat16*, const BFloat16*, BFloat16*, int64_t, cudaStream_t);
template cudaError_t launch_activation(Activation, const double*, const double*, double*, int64_t, cudaStream_t);
}  // namespace fastcnn
