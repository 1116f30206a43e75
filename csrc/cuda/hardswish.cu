// SPDX-License-Identifier: Apache-2.0
#include "hardswish.cuh"

#include "../common/dispatch.h"
#include "entry.h"

namespace fastcnn {
namespace {

// x, or a copy of it in the memory order of y
Tensor in_order_of(const Tensor& x, const Tensor& y) {
  Tensor copy = torch::stable::empty_like(y);
  return torch::stable::copy_(copy, x);
}

bool same_order(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) != 1 && a.stride(d) != b.stride(d)) return false;
  return true;
}

Tensor run(const char* op, const OptionalTensor& grad, const Tensor& x) {
  const DeviceOf device(x);
  Tensor y = torch::stable::empty_like(x);
  if (y.numel() == 0) return y;
  const Tensor dense = same_order(x, y) ? x : in_order_of(x, y);
  OptionalTensor dense_grad = grad;
  if (grad && !same_order(*grad, y)) dense_grad = in_order_of(*grad, y);
  dispatch_dtype(dtype_of(x), [&](auto tag) {
    using S = typename decltype(tag)::type;
    check_launch(op, launch_hardswish(static_cast<const S*>(data(dense_grad)), data<S>(dense), static_cast<S*>(mutable_data(y)), y.numel(),
                                      device.stream()));
  });
  return y;
}

}  // namespace

Tensor hardswish_cuda(const Tensor& x) { return run("hardswish", std::nullopt, x); }

Tensor hardswish_backward_cuda(const Tensor& grad, const Tensor& x) {
  bool same = grad.dim() == x.dim() && grad.scalar_type() == x.scalar_type() && grad.get_device_index() == x.get_device_index();
  for (int64_t d = 0; same && d < x.dim(); ++d) same = grad.size(d) == x.size(d);
  STD_TORCH_CHECK(same, "hardswish_backward: grad must have the shape, dtype and device of x");
  return run("hardswish_backward", grad, x);
}

}  // namespace fastcnn

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CUDA, m) {
  m.impl("hardswish", TORCH_BOX(&fastcnn::hardswish_cuda));
  m.impl("hardswish_backward", TORCH_BOX(&fastcnn::hardswish_backward_cuda));
}
