// SPDX-License-Identifier: Apache-2.0
#include "../../csrc/cuda/depthwise_conv2d.cuh"

namespace fastcnn {
template cudaError_t launch_depthwise_conv2d(const DepthwiseTensors<float>&, const ConvGeometry&, Activation,
                                             cudaStream_t);
template cudaError_t launch_depthwise_conv2d(const DepthwiseTensors<Half>&, const ConvGeometry&, Activation,
                                             cudaStream_t);
template cudaError_t launch_depthwise_conv2d(const DepthwiseTensors<BFloat16>&, const ConvGeometry&, Activation,
                                             cudaStream_t);
template cudaError_t launch_depthwise_conv2d(const DepthwiseTensors<double>&, const ConvGeometry&, Activation,
                                             cudaStream_t);
}  // namespace fastcnn
