// SPDX-License-Identifier: Apache-2.0
#include "global_avg_pool.cuh"

#include "../common/dispatch.h"
#include "entry.h"

namespace fastcnn {

Tensor global_avg_pool_cuda(const Tensor& x) {
  constexpr char kOp[] = "global_avg_pool";
  check_beside(kOp, x, x, "x");
  STD_TORCH_CHECK(x.dim() == 4 && x.size(2) * x.size(3) > 0,
                  "fastcnn: global_avg_pool needs [N, C, H, W] with at least one pixel");
  const DeviceOf device(x);
  const Layout layout = layout_of(x);
  const Tensor y = empty_4d(x, x.size(0), x.size(1), 1, 1, layout);
  if (y.numel() == 0) return y;
  const Tensor dense = as_layout(x, layout);
  dispatch_dtype(dtype_of(x), [&](auto tag) {
    using S = typename decltype(tag)::type;
    const PlanePlan plan =
        plan_plane_sums<S>(layout, x.size(0), x.size(1), x.size(2) * x.size(3), data<S>(dense), nullptr);
    using torch::headeronly::ScalarType;
    const Tensor partial = empty_1d(x, plan.tiles > 1 ? plan.N * plan.tiles * plan.C : 0,
                                    sizeof(Accumulator<S>) == 8 ? ScalarType::Double : ScalarType::Float);
    check_launch(kOp, launch_global_avg_pool(plan, data<S>(dense), static_cast<Accumulator<S>*>(mutable_data(partial)),
                                             static_cast<S*>(mutable_data(y)), device.stream()));
  });
  return y;
}

Tensor global_avg_pool_backward_cuda(const Tensor& grad, const Tensor& x) {
  constexpr char kOp[] = "global_avg_pool_backward";
  check_beside(kOp, x, x, "x");
  check_beside(kOp, grad, x, "grad");
  STD_TORCH_CHECK(x.dim() == 4 && grad.dim() == 4 && grad.size(0) == x.size(0) && grad.size(1) == x.size(1) &&
                      grad.size(2) == 1 && grad.size(3) == 1 && grad.scalar_type() == x.scalar_type(),
                  "fastcnn: global_avg_pool_backward needs grad [N, C, 1, 1] in the dtype of x");
  const DeviceOf device(x);
  const Layout layout = layout_of(x);
  const Tensor grad_x = empty_4d(x, x.size(0), x.size(1), x.size(2), x.size(3), layout);
  if (grad_x.numel() == 0) return grad_x;
  const Tensor dense = as_contiguous(grad);
  dispatch_dtype(dtype_of(x), [&](auto tag) {
    using S = typename decltype(tag)::type;
    check_launch(kOp, launch_global_avg_pool_backward(layout, x.size(0), x.size(1), x.size(2) * x.size(3),
                                                      data<S>(dense), static_cast<S*>(mutable_data(grad_x)),
                                                      device.stream()));
  });
  return grad_x;
}

}  // namespace fastcnn

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CUDA, m) {
  m.impl("global_avg_pool", TORCH_BOX(&fastcnn::global_avg_pool_cuda));
  m.impl("global_avg_pool_backward", TORCH_BOX(&fastcnn::global_avg_pool_backward_cuda));
}
