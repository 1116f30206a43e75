// SPDX-License-Identifier: Apache-2.0
// h-swish, forward and backward: the elementwise kernel of activation.cuh with the functor fixed, so that no thread
// chooses among activations. Free of torch; tile and bytes as there.
#pragma once

#include "activation.cuh"

namespace fastcnn {

// y = hardswish(x), or grad * hardswish'(x) when grad is given. count > 0.
template <typename S>
cudaError_t launch_hardswish(const S* grad, const S* x, S* y, int64_t count, cudaStream_t stream) {
  return launch_activation(HardSwish(), grad, x, y, count, stream);
}

}  // namespace fastcnn
