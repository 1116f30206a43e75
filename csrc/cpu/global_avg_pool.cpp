// SPDX-License-Identifier: Apache-2.0
#include "global_avg_pool.h"

#include "tensor.h"

namespace fastcnn {

Tensor global_avg_pool_cpu(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4 && x.size(2) * x.size(3) > 0, "fastcnn: global_avg_pool needs [N, C, H, W] with at least one pixel");
  const Layout layout = layout_of(x);
  const int64_t N = x.size(0), C = x.size(1), HW = x.size(2) * x.size(3);
  Tensor y = empty_4d(x, N, C, 1, 1, layout);
  if (y.numel() == 0) return y;
  const Tensor dense = as_layout(x, layout);
  const int64_t size = plane_sum_scratch(layout, N, C, HW);
  const Tensor scratch = size > 0 ? empty_1d(x, size, torch::headeronly::ScalarType::Double) : y;
  global_avg_pool_forward_kernel_dispatch({dtype_of(x), layout, N, C, HW, data(dense), mutable_data(y), nullptr,
                                           size > 0 ? static_cast<double*>(mutable_data(scratch)) : nullptr});
  return y;
}

Tensor global_avg_pool_backward_cpu(const Tensor& grad, const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4 && grad.dim() == 4 && grad.size(0) == x.size(0) && grad.size(1) == x.size(1) && grad.size(2) == 1 &&
                      grad.size(3) == 1 && grad.scalar_type() == x.scalar_type(),
                  "fastcnn: global_avg_pool_backward needs grad [N, C, 1, 1] in the dtype of x");
  const Layout layout = layout_of(x);
  const int64_t N = x.size(0), C = x.size(1), HW = x.size(2) * x.size(3);
  Tensor grad_x = empty_4d(x, N, C, x.size(2), x.size(3), layout);
  if (grad_x.numel() == 0) return grad_x;
  const Tensor dense = as_contiguous(grad);
  global_avg_pool_backward_kernel_dispatch({dtype_of(x), layout, N, C, HW, data(dense), mutable_data(grad_x)});
  return grad_x;
}

}  // namespace fastcnn

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CPU, m) {
  m.impl("global_avg_pool", TORCH_BOX(&fastcnn::global_avg_pool_cpu));
  m.impl("global_avg_pool_backward", TORCH_BOX(&fastcnn::global_avg_pool_backward_cpu));
}
