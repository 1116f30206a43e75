// SPDX-License-Identifier: Apache-2.0
#include "activation.cuh"

#include "../common/dispatch.h"
#include "../cpu/elementwise.h"
#include "hardswish.cuh"
#include "on_device.h"

namespace fastcnn {

// What the entry functions of hardswish launch too.
void activation_kernel_dispatch(const ActivationArgs& args) {
  dispatch_dtype(args.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    const S *grad = static_cast<const S*>(args.grad), *x = static_cast<const S*>(args.x);
    S* y = static_cast<S*>(args.y);
    const cudaStream_t stream = current_stream();
    check_launch("activation", args.kind == Activation::kHardSwish
                                   ? launch_hardswish(grad, x, y, args.count, stream)
                                   : launch_activation(args.kind, grad, x, y, args.count, stream));
  });
}

namespace {

struct Forward {
  static constexpr const char* kName = "activation";
  static constexpr const char* kTensors[] = {"x"};
};
struct Backward {
  static constexpr const char* kName = "activation_backward";
  static constexpr const char* kTensors[] = {"grad", "x"};
};

}  // namespace

Tensor activation_cuda(const Tensor& x, std::string kind) { return apply_activation(x, activation_of(kind)); }

Tensor activation_backward_cuda(const Tensor& grad, const Tensor& x, std::string kind) {
  return apply_activation_backward(grad, x, activation_of(kind));
}

}  // namespace fastcnn

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CUDA, m) {
  using namespace fastcnn;
  m.impl("activation", TORCH_BOX((&OnDevice<Forward, &activation_cuda>::call)));
  m.impl("activation_backward", TORCH_BOX((&OnDevice<Backward, &activation_backward_cuda>::call)));
}
