// SPDX-License-Identifier: Apache-2.0
#include "se_scale_host.h"

#include <tuple>

#include "global_avg_pool.h"
#include "se_scale.h"

namespace fastcnn {
namespace {

using torch::headeronly::ScalarType;

struct Layers {  // in the accumulator type
  Tensor w1, b1, w2, b2;
  int64_t R;
};

Layers layers_of(const Tensor& x, const Tensor& w1, const Tensor& b1, const Tensor& w2, const Tensor& b2) {
  STD_TORCH_CHECK(x.dim() == 4 && x.size(2) * x.size(3) > 0, "fastcnn: se_scale and se_gate need [N, C, H, W] with at least one pixel");
  const int64_t C = x.size(1), R = b1.numel();
  STD_TORCH_CHECK(w1.numel() == R * C && w2.numel() == R * C && b2.numel() == C, "fastcnn: the weights of squeeze-and-excitation do not fit x");
  const Dtype dtype = dtype_of(x);
  return {as_accumulator(w1, dtype), as_accumulator(b1, dtype), as_accumulator(w2, dtype), as_accumulator(b2, dtype), R};
}

Tensor accumulator_empty(const Tensor& x, std::initializer_list<int64_t> sizes) {
  const ScalarType dtype = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  return torch::stable::new_empty(x, sizes, dtype);
}

double* sums_of(const Tensor& scratch) { return scratch.numel() > 0 ? static_cast<double*>(mutable_data(scratch)) : nullptr; }

// A gradient in the dtype and the shape of its weight: `wide` holds the accumulator's, row-major.
struct WeightGradient {
  Tensor result, wide;

  explicit WeightGradient(const Tensor& weight, const Tensor& compute)
      : result(torch::stable::new_empty(weight, weight.sizes())),
        wide(weight.scalar_type() == compute.scalar_type() ? result : torch::stable::new_empty(weight, weight.sizes(), compute.scalar_type())) {}

  Tensor finish() {
    if (wide.get() != result.get()) torch::stable::copy_(result, wide);
    return result;
  }
};

}  // namespace

SeGates se_gates(const Tensor& x, const Tensor& w1, const Tensor& b1, const Tensor& w2, const Tensor& b2,
                 const std::string& activation, const std::string& gate) {
  const Layers layers = layers_of(x, w1, b1, w2, b2);
  const Layout layout = layout_of(x);
  const Dtype dtype = dtype_of(x);
  const int64_t N = x.size(0), C = x.size(1), HW = x.size(2) * x.size(3), R = layers.R;
  const Tensor pooled = accumulator_empty(x, {N, C}), scale = accumulator_empty(x, {N, C});
  if (x.numel() == 0) return {x, pooled, scale};
  const Tensor dense = as_layout(x, layout);
  const Tensor sums = empty_1d(x, plane_sum_scratch(layout, N, C, HW), ScalarType::Double);
  global_avg_pool_forward_kernel_dispatch({dtype, layout, N, C, HW, data(dense), nullptr, mutable_data(pooled), sums_of(sums)});
  const Tensor hidden = accumulator_empty(x, {N, R});
  se_gate_forward_kernel_dispatch({dtype, activation_of(activation), activation_of(gate), N, C, R, data(pooled), data(layers.w1),
                                   data(layers.b1), data(layers.w2), data(layers.b2), mutable_data(hidden), mutable_data(scale)});
  return {dense, pooled, scale};
}

std::tuple<Tensor, Tensor> se_scale_cpu(const Tensor& x, const Tensor& w1, const Tensor& b1, const Tensor& w2, const Tensor& b2,
                                        std::string activation, std::string gate) {
  const SeGates found = se_gates(x, w1, b1, w2, b2, activation, gate);
  const Layout layout = layout_of(x);
  const int64_t N = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3);
  const Tensor y = empty_4d(x, N, C, H, W, layout);
  if (x.numel() > 0)
    se_scale_forward_kernel_dispatch({dtype_of(x), layout, N, C, H * W, data(found.x), data(found.scale), mutable_data(y)});
  return {y, found.pooled};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> se_scale_backward_cpu(const Tensor& grad, const Tensor& x, const Tensor& pooled,
                                                                         const Tensor& w1, const Tensor& b1, const Tensor& w2,
                                                                         const Tensor& b2, std::string activation, std::string gate) {
  const Layers layers = layers_of(x, w1, b1, w2, b2);
  const Layout layout = layout_of(x);
  const Dtype dtype = dtype_of(x);
  const int64_t N = x.size(0), C = x.size(1), HW = x.size(2) * x.size(3), R = layers.R;
  STD_TORCH_CHECK(grad.dim() == 4 && grad.scalar_type() == x.scalar_type(), "fastcnn: grad must have the dtype of x");
  for (int d = 0; d < 4; ++d) STD_TORCH_CHECK(grad.size(d) == x.size(d), "fastcnn: grad must have the shape of x");
  STD_TORCH_CHECK(pooled.numel() == N * C, "fastcnn: pooled must be [N, C]");
  const Tensor grad_x = empty_4d(x, N, C, x.size(2), x.size(3), layout);
  WeightGradient grad_w1(w1, layers.w1), grad_b1(b1, layers.w1), grad_w2(w2, layers.w1), grad_b2(b2, layers.w1);
  const Tensor dense_x = as_layout(x, layout), dense_grad = as_layout(grad, layout), means = as_accumulator(pooled, dtype);
  const Tensor scratch = accumulator_empty(x, {se_scale_backward_scratch(N, C, R)});
  const Tensor sums = empty_1d(x, plane_sum_scratch(layout, N, C, HW), ScalarType::Double);
  se_scale_backward_kernel_dispatch({dtype, activation_of(activation), activation_of(gate), layout, N, C, R, HW, data(dense_grad),
                                     data(dense_x), data(means), data(layers.w1), data(layers.b1), data(layers.w2), data(layers.b2),
                                     mutable_data(grad_x), mutable_data(grad_w1.wide), mutable_data(grad_b1.wide), mutable_data(grad_w2.wide),
                                     mutable_data(grad_b2.wide), mutable_data(scratch), sums_of(sums)});
  return {grad_x, grad_w1.finish(), grad_b1.finish(), grad_w2.finish(), grad_b2.finish()};
}

}  // namespace fastcnn

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CPU, m) {
  m.impl("se_scale", TORCH_BOX(&fastcnn::se_scale_cpu));
  m.impl("se_scale_backward", TORCH_BOX(&fastcnn::se_scale_backward_cpu));
}
