// SPDX-License-Identifier: Apache-2.0
// The entry functions are those of the CPU (csrc/cpu/batch_norm_act_entry.h); here is what they launch.
#include "batch_norm_act_backward.cuh"

#include "../common/dispatch.h"
#include "../cpu/batch_norm_act_entry.h"
#include "on_device.h"

namespace fastcnn {
namespace {

constexpr char kOp[] = "batch_norm_act";

template <typename T> const T* in(const void* p) { return static_cast<const T*>(p); }
template <typename T> T* out(void* p) { return static_cast<T*>(p); }

}  // namespace

// Of the segments, then two vectors of accumulators.
int64_t batch_norm_scratch(int64_t N, int64_t C, int64_t HW) { return batch_norm_sums_size(N, C, HW) + 2 * C; }

void batch_norm_act_forward_kernel_dispatch(const BatchNormActArgs& a) {
  dispatch_dtype(a.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    using A = Accumulator<S>;
    const BatchNormTensors<S> tensors = {in<S>(a.x), in<A>(a.scale), in<A>(a.shift), in<S>(a.residual), out<S>(a.y)};
    check_launch(kOp, launch_batch_norm_act_forward(tensors, batch_norm_shape(a.layout, a.N, a.C, a.HW), a.activation,
                                                    current_stream()));
  });
}

void batch_norm_fold_kernel_dispatch(const BatchNormFoldArgs& a) {
  const auto fold = [&](auto zero) {
    using A = decltype(zero);
    const BatchNormFold<A> vectors = {in<A>(a.weight), in<A>(a.bias),  in<A>(a.mean),   in<A>(a.variance),
                                      in<A>(a.invstd), a.eps,          out<A>(a.scale), out<A>(a.shift)};
    check_launch(kOp, launch_batch_norm_act_fold(vectors, a.C, current_stream()));
  };
  if (a.dtype == Dtype::kFloat64) fold(double(0));
  else fold(float(0));
}

void batch_norm_statistics_kernel_dispatch(const BatchNormStatisticsArgs& a) {
  dispatch_dtype(a.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    using A = Accumulator<S>;
    const BatchNormStatistics<A> vectors = {a.momentum,           a.eps,          in<A>(a.running_mean),
                                            in<A>(a.running_var), out<A>(a.mean), out<A>(a.invstd),
                                            out<A>(a.new_mean),   out<A>(a.new_var)};
    check_launch(kOp, launch_batch_norm_act_statistics(in<S>(a.x), batch_norm_shape(a.layout, a.N, a.C, a.HW), vectors,
                                                       a.scratch, current_stream()));
  });
}

void batch_norm_act_backward_kernel_dispatch(const BatchNormActBackwardArgs& a) {
  dispatch_dtype(a.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    using A = Accumulator<S>;
    const BatchNormShape shape = batch_norm_shape(a.layout, a.N, a.C, a.HW);
    A* constant = reinterpret_cast<A*>(a.scratch + batch_norm_sums_size(a.N, a.C, a.HW));
    A* slope = constant + a.C;
    BatchNormBackward<S> tensors = {in<S>(a.grad),  in<S>(a.x),    in<S>(a.residual), in<A>(a.scale),
                                    in<A>(a.shift), in<A>(a.mean), nullptr,           nullptr,
                                    out<S>(a.grad_x), out<S>(a.grad_residual)};
    const bool centred = a.training && a.grad_x != nullptr;
    if (a.grad_weight != nullptr || a.grad_bias != nullptr || centred) {
      const BatchNormGradientVectors<A> vectors = {in<A>(a.scale),      in<A>(a.invstd), out<A>(a.grad_weight),
                                                   out<A>(a.grad_bias), constant,        slope};
      check_launch(kOp, launch_batch_norm_act_backward_sums(tensors, shape, vectors, a.activation, a.scratch,
                                                            current_stream()));
    }
    if (centred) tensors.constant = constant, tensors.slope = slope;
    if (a.N * a.C * a.HW > 0 && (a.grad_x != nullptr || a.grad_residual != nullptr))
      check_launch(kOp, launch_batch_norm_act_backward_input(tensors, shape, a.activation, current_stream()));
  });
}

namespace {

struct Eval {
  static constexpr const char* kName = "batch_norm_act";
  static constexpr const char* kTensors[] = {"x", "running_mean", "running_var", "weight", "bias", "residual"};
};
struct Train {
  static constexpr const char* kName = "batch_norm_act_train";
  static constexpr const char* kTensors[] = {"x", "running_mean", "running_var", "weight", "bias", "residual"};
};
struct Backward {
  static constexpr const char* kName = "batch_norm_act_backward";
  static constexpr const char* kTensors[] = {"grad", "x", "mean", "invstd", "weight", "bias", "residual"};
};

}  // namespace
}  // namespace fastcnn

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CUDA, m) {
  using namespace fastcnn;
  m.impl("batch_norm_act", TORCH_BOX((&OnDevice<Eval, &batch_norm_act_entry>::call)));
  m.impl("batch_norm_act_train", TORCH_BOX((&OnDevice<Train, &batch_norm_act_train_entry>::call)));
  m.impl("batch_norm_act_backward", TORCH_BOX((&OnDevice<Backward, &batch_norm_act_backward_entry>::call)));
}
