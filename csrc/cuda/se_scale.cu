// SPDX-License-Identifier: Apache-2.0
#include "se_scale.cuh"

#include <tuple>

#include "../common/dispatch.h"
#include "entry.h"
#include "se_scale_host.h"

namespace fastcnn {
namespace {

static_assert(kGateThreads == 512, "named in the error of se_scale_backward");

using torch::headeronly::ScalarType;

ScalarType accumulator_of(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

Tensor accumulator_empty(const Tensor& x, std::initializer_list<int64_t> sizes) {
  return torch::stable::new_empty(x, sizes, accumulator_of(x));
}

template <typename A> A* accumulators(const Tensor& x) { return static_cast<A*>(mutable_data(x)); }

// Weights and biases in one storage type: as they are where all have x's or the accumulator's, else in the latter.
struct Layers {
  Tensor w1, b1, w2, b2;
  int64_t R;
};

Layers layers_of(const char* op, const Tensor& x, const Tensor& w1, const Tensor& b1, const Tensor& w2,
                 const Tensor& b2) {
  check_beside(op, w1, x, "w1");
  check_beside(op, b1, x, "b1");
  check_beside(op, w2, x, "w2");
  check_beside(op, b2, x, "b2");
  STD_TORCH_CHECK(x.dim() == 4 && x.size(2) * x.size(3) > 0, "fastcnn: ", op,
                  ": x must be [N, C, H, W] with at least one pixel");
  const int64_t C = x.size(1), R = b1.numel();
  STD_TORCH_CHECK(w1.numel() == R * C && w2.numel() == R * C && b2.numel() == C,
                  "fastcnn: ", op, ": the weights must fit x");
  const ScalarType type = w1.scalar_type();
  const bool one = b1.scalar_type() == type && w2.scalar_type() == type && b2.scalar_type() == type;
  if (one && (type == x.scalar_type() || type == accumulator_of(x)))
    return {as_contiguous(w1), as_contiguous(b1), as_contiguous(w2), as_contiguous(b2), R};
  const Dtype dtype = dtype_of(x);
  return {as_accumulator(w1, dtype), as_accumulator(b1, dtype), as_accumulator(w2, dtype), as_accumulator(b2, dtype),
          R};
}

// `wanted` accumulators of `size` bytes, which are `what`.
void check_shared(const char* op, const char* what, int64_t wanted, int64_t size, int64_t C, int64_t R) {
  STD_TORCH_CHECK(wanted * size <= most_shared(), "fastcnn: ", op, ": ", what, " must be at most ",
                  most_shared() / size, " for the shared memory of this GPU, got C = ", C, " and R = ", R);
}

// f(TypeTag<S>, TypeTag<W>): of x and of the weights, which have one accumulator's type.
template <typename F> void dispatch_types(const Tensor& x, const Tensor& weight, F&& f) {
  dispatch_dtype(dtype_of(x), [&](auto tag) {
    using S = typename decltype(tag)::type;
    if (weight.scalar_type() == x.scalar_type()) f(tag, TypeTag<S>{});
    else f(tag, TypeTag<Accumulator<S>>{});
  });
}

template <typename W>
SeLayers<W> kernel_layers(const Layers& layers, int64_t N, int64_t C, const std::string& activation,
                          const std::string& gate) {
  return se_layers(data<W>(layers.w1), data<W>(layers.b1), data<W>(layers.w2), data<W>(layers.b2), N, C, layers.R,
                   activation_of(activation), activation_of(gate));
}

// A gradient in the dtype and the shape of its weight, computed in that of the layers.
struct WeightGradient {
  Tensor result, computed;

  explicit WeightGradient(const Tensor& weight, const Tensor& layers)
      : result(torch::stable::new_empty(weight, weight.sizes())),
        computed(weight.scalar_type() == layers.scalar_type()
                     ? result
                     : torch::stable::new_empty(weight, weight.sizes(), layers.scalar_type())) {}

  template <typename W> W* data() const { return static_cast<W*>(mutable_data(computed)); }
  Tensor finish() {
    if (computed.get() != result.get()) torch::stable::copy_(result, computed);
    return result;
  }
};

// pooled and scale from sums of x, [N, tiles, C].
void launch_gates(const char* op, const Tensor& x, const Layers& layers, const Tensor& sums, const Tensor& pooled,
                  const Tensor& scale, const std::string& activation, const std::string& gate) {
  const int64_t N = x.size(0), C = x.size(1), HW = x.size(2) * x.size(3);
  dispatch_types(x, layers.w1, [&](auto tag, auto weight_tag) {
    using A = Accumulator<typename decltype(tag)::type>;
    using W = typename decltype(weight_tag)::type;
    check_shared(op, "C + R", se_gate_shared(C, layers.R), sizeof(A), C, layers.R);
    check_launch(op, launch_se_gate(kernel_layers<W>(layers, N, C, activation, gate),
                                    SeSums<A>{data<A>(sums), sums.size(1)}, A(1.0 / double(HW)),
                                    accumulators<A>(pooled), accumulators<A>(scale), current_stream()));
  });
}

}  // namespace

SeGates se_gates(const char* op, const Tensor& x, const Tensor& w1, const Tensor& b1, const Tensor& w2,
                 const Tensor& b2, const std::string& activation, const std::string& gate) {
  const Layers layers = layers_of(op, x, w1, b1, w2, b2);
  const Layout layout = layout_of(x);
  const int64_t N = x.size(0), C = x.size(1), HW = x.size(2) * x.size(3);
  const Tensor pooled = accumulator_empty(x, {N, C}), scale = accumulator_empty(x, {N, C});
  if (x.numel() == 0) return {x, pooled, scale};
  const Tensor dense = as_layout(x, layout);
  dispatch_dtype(dtype_of(x), [&](auto tag) {
    using S = typename decltype(tag)::type;
    using A = Accumulator<S>;
    const PlanePlan plan = plan_plane_sums<S>(layout, N, C, HW, data<S>(dense), nullptr);
    const Tensor sums = accumulator_empty(x, {N, plan.tiles, C});
    check_launch(op, launch_plane_sums<S, A, false>(plan, data<S>(dense), nullptr, accumulators<A>(sums), A(1),
                                                    current_stream()));
    launch_gates(op, x, layers, sums, pooled, scale, activation, gate);
  });
  return {dense, pooled, scale};
}

SeGates se_gates_of_sums(const char* op, const Tensor& x, const Tensor& sums, const Tensor& w1, const Tensor& b1,
                         const Tensor& w2, const Tensor& b2, const std::string& activation, const std::string& gate) {
  const Layers layers = layers_of(op, x, w1, b1, w2, b2);
  const int64_t N = x.size(0), C = x.size(1);
  const Tensor pooled = accumulator_empty(x, {N, C}), scale = accumulator_empty(x, {N, C});
  if (x.numel() > 0) launch_gates(op, x, layers, sums, pooled, scale, activation, gate);
  return {x, pooled, scale};
}

Tensor se_scaled(const char* op, const Tensor& x, Layout layout, const Tensor& scale) {
  const int64_t N = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3);
  const Tensor y = empty_4d(x, N, C, H, W, layout);
  if (y.numel() == 0) return y;
  dispatch_dtype(dtype_of(x), [&](auto tag) {
    using S = typename decltype(tag)::type;
    check_launch(op, launch_se_scale<S>(layout, N, C, H * W, data<S>(x), data<Accumulator<S>>(scale), nullptr,
                                        static_cast<S*>(mutable_data(y)), current_stream()));
  });
  return y;
}

std::tuple<Tensor, Tensor> se_scale_cuda(const Tensor& x, const Tensor& w1, const Tensor& b1, const Tensor& w2,
                                         const Tensor& b2, std::string activation, std::string gate) {
  constexpr char kOp[] = "se_scale";
  check_beside(kOp, x, x, "x");
  const DeviceOf device(x);
  const SeGates found = se_gates(kOp, x, w1, b1, w2, b2, activation, gate);
  return {se_scaled(kOp, found.x, layout_of(x), found.scale), found.pooled};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> se_scale_backward_cuda(
    const Tensor& grad, const Tensor& x, const Tensor& pooled, const Tensor& w1, const Tensor& b1, const Tensor& w2,
    const Tensor& b2, std::string activation, std::string gate) {
  constexpr char kOp[] = "se_scale_backward";
  check_beside(kOp, x, x, "x");
  const DeviceOf device(x);
  const Layers layers = layers_of(kOp, x, w1, b1, w2, b2);
  check_beside(kOp, grad, x, "grad");
  check_beside(kOp, pooled, x, "pooled");
  const Layout layout = layout_of(x);
  const int64_t N = x.size(0), C = x.size(1), HW = x.size(2) * x.size(3), R = layers.R;
  STD_TORCH_CHECK(grad.dim() == 4 && grad.scalar_type() == x.scalar_type(), "fastcnn: grad must have the dtype of x");
  for (int d = 0; d < 4; ++d) STD_TORCH_CHECK(grad.size(d) == x.size(d), "fastcnn: grad must have the shape of x");
  STD_TORCH_CHECK(pooled.numel() == N * C, "fastcnn: pooled must be [N, C]");
  const Tensor grad_x = empty_4d(x, N, C, x.size(2), x.size(3), layout);
  WeightGradient grad_w1(w1, layers.w1), grad_b1(b1, layers.w1), grad_w2(w2, layers.w1), grad_b2(b2, layers.w1);
  const bool empty = x.numel() == 0;  // of the weights, zeros
  const Tensor dense_x = as_layout(x, layout), dense_grad = as_layout(grad, layout);
  const Tensor means = as_accumulator(pooled, dtype_of(x));
  const Tensor scratch = accumulator_empty(x, {N * (3 * C + 2 * R)});
  dispatch_types(x, layers.w1, [&](auto tag, auto weight_tag) {
    using S = typename decltype(tag)::type;
    using W = typename decltype(weight_tag)::type;
    using A = Accumulator<S>;
    A* room = accumulators<A>(scratch);
    const SeBackward<A> out = {room, room + N * C, room + 2 * N * C, room + 3 * N * C, room + N * (3 * C + R)};
    if (!empty) {
      check_shared(kOp, "C + 2 R + 512", se_gate_backward_shared(C, R), sizeof(A), C, R);
      const S *from = data<S>(dense_x), *by = data<S>(dense_grad);
      const PlanePlan plan = plan_plane_sums<S>(layout, N, C, HW, from, by);
      const Tensor partial = accumulator_empty(x, {N, plan.tiles, C});
      const SeSums<A> sums = {data<A>(partial), plan.tiles};
      check_launch(kOp, launch_plane_sums<S, A, true>(plan, from, by, accumulators<A>(partial), A(1), device.stream()));
      check_launch(kOp, launch_se_gate_backward(kernel_layers<W>(layers, N, C, activation, gate), sums, data<A>(means),
                                                A(1.0 / double(HW)), out, device.stream()));
      check_launch(kOp, launch_se_scale<S>(layout, N, C, HW, by, out.scale, out.grad_pooled,
                                           static_cast<S*>(mutable_data(grad_x)), device.stream()));
    }
    if (C > 0 || R > 0)
      check_launch(kOp, launch_se_weights_backward(empty ? 0 : N, C, R, out, data<A>(means), grad_w1.data<W>(),
                                                   grad_b1.data<W>(), grad_w2.data<W>(), grad_b2.data<W>(),
                                                   device.stream()));
  });
  return {grad_x, grad_w1.finish(), grad_b1.finish(), grad_w2.finish(), grad_b2.finish()};
}

}  // namespace fastcnn

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CUDA, m) {
  m.impl("se_scale", TORCH_BOX(&fastcnn::se_scale_cuda));
  m.impl("se_scale_backward", TORCH_BOX(&fastcnn::se_scale_backward_cuda));
}
