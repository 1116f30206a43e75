// SPDX-License-Identifier: Apache-2.0
#include "../../csrc/cuda/channel_shuffle.cuh"

namespace fastcnn {
template cudaError_t launch_channel_shuffle(ShuffleTensors<float>, const ShuffleShape&, cudaStream_t);
template cudaError_t launch_channel_shuffle(ShuffleTensors<Half>, const ShuffleShape&, cudaStream_t);
template cudaError_t launch_channel_shuffle(ShuffleTensors<double>, const ShuffleShape&, cudaStream_t);
}  // namespace fastcnn
