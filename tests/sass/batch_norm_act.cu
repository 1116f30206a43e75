// SPDX-License-Identifier: Apache-2.0
#include "../../csrc/cuda/batch_norm_act_backward.cuh"

namespace fastcnn {

// Names the launchers of one dtype, so that their kernels are compiled.
template <typename S> cudaError_t every_launcher(const BatchNormBackward<S>& t, double* parts) {
  using A = Accumulator<S>;
  const BatchNormShape shape = {};
  const cudaError_t errors[] = {
      launch_batch_norm_act_forward(BatchNormTensors<S>{}, shape, Activation(), nullptr),
      launch_batch_norm_act_fold(BatchNormFold<A>{}, 1, nullptr),
      launch_batch_norm_act_statistics(t.x, shape, BatchNormStatistics<A>{}, parts, nullptr),
      launch_batch_norm_act_backward_sums(t, shape, BatchNormGradientVectors<A>{}, Activation(), parts, nullptr),
      launch_batch_norm_act_backward_input(t, shape, Activation(), nullptr)};
  return errors[0];
}
template cudaError_t every_launcher(const BatchNormBackward<float>&, double*);
template cudaError_t every_launcher(const BatchNormBackward<Half>&, double*);
template cudaError_t every_launcher(const BatchNormBackward<BFloat16>&, double*);
template cudaError_t every_launcher(const BatchNormBackward<double>&, double*);
}  // namespace fastcnn
