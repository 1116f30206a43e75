// SPDX-License-Identifier: Apache-2.0
#include "../../csrc/cuda/se_scale.cuh"

namespace fastcnn {
#define FASTCNN_OF_TYPE(S, A)                                                                                          \
  template cudaError_t launch_plane_sums<S, A, true>(const PlanePlan&, const S*, const S*, A*, A, cudaStream_t);       \
  template cudaError_t launch_se_gate<S, A>(const SeLayers<S>&, const SeSums<A>&, A, A*, A*, cudaStream_t);            \
  template cudaError_t launch_se_gate_backward<S, A>(const SeLayers<S>&, const SeSums<A>&, const A*, A,                \
                                                     const SeBackward<A>&, cudaStream_t);                              \
  template cudaError_t launch_se_weights_backward<S, A>(int64_t, int64_t, int64_t, const SeBackward<A>&, const A*, S*, \
                                                        S*, S*, S*, cudaStream_t);                                     \
  template cudaError_t launch_se_scale(Layout, int64_t, int64_t, int64_t, const S*, const A*, const A*, S*,            \
                                       cudaStream_t);
FASTCNN_OF_TYPE(float, float)
FASTCNN_OF_TYPE(Half, float)
FASTCNN_OF_TYPE(BFloat16, float)
FASTCNN_OF_TYPE(double, double)
}  // namespace fastcnn
