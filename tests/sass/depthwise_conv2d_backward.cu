// SPDX-License-Identifier: Apache-2.0
#include "../../csrc/cuda/depthwise_conv2d_backward.cuh"

namespace fastcnn {
template <typename S> cudaError_t backward(const DepthwiseTensors<S>& z, const DepthwiseGradients<S>& t,
                                           const ConvGeometry& g, Activation activation, cudaStream_t stream) {
  const cudaError_t error = launch_depthwise_conv2d<S, true>(z, g, activation, stream);
  return error != cudaSuccess ? error : launch_depthwise_conv2d_backward(t, g, stream);
}
template cudaError_t backward(const DepthwiseTensors<float>&, const DepthwiseGradients<float>&, const ConvGeometry&,
                              Activation, cudaStream_t);
template cudaError_t backward(const DepthwiseTensors<Half>&, const DepthwiseGradients<Half>&, const ConvGeometry&,
                              Activation, cudaStream_t);
template cudaError_t backward(const DepthwiseTensors<BFloat16>&, const DepthwiseGradients<BFloat16>&,
                              const ConvGeometry&, Activation, cudaStream_t);
template cudaError_t backward(const DepthwiseTensors<double>&, const DepthwiseGradients<double>&, const ConvGeometry&,
                              Activation, cudaStream_t);
}  // namespace fastcnn
