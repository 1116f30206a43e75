// SPDX-License-Identifier: Apache-2.0
// Batch norm on tensors, for the entry functions of batch_norm_act and conv_bn_act, CPU and CUDA. Whatever is called
// *_kernel_dispatch, and batch_norm_scratch, are the library's own. Tensors here are 4-D and dense in the layout named.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "batch_norm_act.h"
#include "tensor.h"

namespace fastcnn {

struct ScaleShift {  // [C], accumulator type
  Tensor scale, shift;
};

struct Planes {
  int64_t N, C, HW;
};

inline Planes planes_of(const Tensor& x) { return {x.size(0), x.size(1), x.size(2) * x.size(3)}; }

inline Tensor accumulator_vector(const Tensor& like, int64_t size) {
  using torch::headeronly::ScalarType;
  return empty_1d(like, size, like.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float);
}

// A checked [C] vector in the accumulator type.
inline Tensor channel_vector(const Tensor& vector, const Tensor& x) {
  STD_TORCH_CHECK(vector.numel() == x.size(1), "fastcnn: a batch norm vector must have one value per channel of x");
  return as_accumulator(vector, dtype_of(x));
}

inline OptionalTensor channel_vector(const OptionalTensor& vector, const Tensor& x) {
  return vector ? OptionalTensor(channel_vector(*vector, x)) : std::nullopt;
}

inline OptionalTensor like_x(const OptionalTensor& other, const Tensor& x, Layout layout) {
  if (!other) return std::nullopt;
  STD_TORCH_CHECK(other->scalar_type() == x.scalar_type() && other->dim() == 4,
                  "fastcnn: residual and grad must have the dtype of x");
  for (int d = 0; d < 4; ++d)
    STD_TORCH_CHECK(other->size(d) == x.size(d), "fastcnn: residual and grad must have the shape of x");
  return as_layout(*other, layout);
}

// An accumulator vector as a tensor of the caller's dtype.
inline Tensor in_dtype(const Tensor& vector, torch::headeronly::ScalarType dtype) {
  if (vector.scalar_type() == dtype) return vector;
  Tensor converted = empty_1d(vector, vector.numel(), dtype);
  return torch::stable::copy_(converted, vector);
}

inline ScaleShift fold_vectors(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                               const Tensor& mean, const void* variance, const void* invstd, double eps) {
  const int64_t C = x.size(1);
  const OptionalTensor w = channel_vector(weight, x), b = channel_vector(bias, x);
  ScaleShift folded{accumulator_vector(x, C), accumulator_vector(x, C)};
  batch_norm_fold_kernel_dispatch({dtype_of(x), C, data(w), data(b), data(mean), variance, invstd, eps,
                                   mutable_data(folded.scale), mutable_data(folded.shift)});
  return folded;
}

// From running statistics (eval) or from the batch's own (training). x gives C, dtype and device.
inline ScaleShift fold_batch_norm(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                                  const Tensor& mean, const Tensor& variance, double eps) {
  const Tensor m = channel_vector(mean, x), v = channel_vector(variance, x);
  return fold_vectors(x, weight, bias, m, data(v), nullptr, eps);
}

inline ScaleShift fold_batch_norm_invstd(const Tensor& x, const OptionalTensor& weight, const OptionalTensor& bias,
                                         const Tensor& mean, const Tensor& invstd) {
  const Tensor m = channel_vector(mean, x), i = channel_vector(invstd, x);
  return fold_vectors(x, weight, bias, m, nullptr, data(i), 0.0);
}

struct BatchStatistics {
  Tensor mean, invstd;       // [C], accumulator type
  Tensor new_mean, new_var;  // [C] in the dtype of the running vectors, empty without them
};

inline BatchStatistics batch_norm_statistics(const Tensor& x, Layout layout, const OptionalTensor& running_mean,
                                             const OptionalTensor& running_var, double momentum, double eps) {
  STD_TORCH_CHECK(running_mean.has_value() == running_var.has_value(),
                  "fastcnn: running_mean and running_var come together");
  const Planes p = planes_of(x);
  const bool seen = p.N * p.HW > 0;  // an empty batch leaves the running statistics as they are
  const OptionalTensor old_mean = channel_vector(running_mean, x), old_var = channel_vector(running_var, x);
  const Tensor mean = accumulator_vector(x, p.C), invstd = accumulator_vector(x, p.C);
  const Tensor new_mean = accumulator_vector(x, old_mean ? p.C : 0);
  const Tensor new_var = accumulator_vector(x, old_var ? p.C : 0);
  const Tensor scratch = empty_1d(x, batch_norm_scratch(p.N, p.C, p.HW), torch::headeronly::ScalarType::Double);
  if (!seen) {
    Tensor zeros = scratch;
    torch::stable::fill_(zeros, 0.0);
  }
  batch_norm_statistics_kernel_dispatch({dtype_of(x), layout, p.N, p.C, p.HW, data(x), seen ? momentum : 0.0, eps,
                                         data(old_mean), data(old_var), mutable_data(mean), mutable_data(invstd),
                                         mutable_data(new_mean), mutable_data(new_var),
                                         static_cast<double*>(mutable_data(scratch))});
  if (!running_mean) return {mean, invstd, no_tensor(x), no_tensor(x)};
  return {mean, invstd, in_dtype(new_mean, running_mean->scalar_type()), in_dtype(new_var, running_var->scalar_type())};
}

// y = act(x * scale + shift + residual); on the CPU y may be x.
inline void batch_norm_act_apply(const Tensor& x, Layout layout, const ScaleShift& folded,
                                 const OptionalTensor& residual, Activation activation, const Tensor& y) {
  if (x.numel() == 0) return;
  const OptionalTensor r = like_x(residual, x, layout);
  const Planes p = planes_of(x);
  batch_norm_act_forward_kernel_dispatch({dtype_of(x), activation, layout, p.N, p.C, p.HW, data(x), data(folded.scale),
                                          data(folded.shift), data(r), mutable_data(y)});
}

struct BatchNormGradients {
  Tensor x, weight, bias, residual;  // empty where the mask is off
};

// mask: x, weight, bias, residual. The outputs are dense in `layout`; weight and bias gradients have their vectors'
// dtype.
inline BatchNormGradients batch_norm_act_gradients(const Tensor& grad, const Tensor& x, Layout layout,
                                                   const Tensor& mean, const Tensor& invstd,
                                                   const OptionalTensor& weight, const OptionalTensor& bias,
                                                   const OptionalTensor& residual, bool training,
                                                   Activation activation, const std::vector<bool>& mask) {
  STD_TORCH_CHECK(mask.size() == 4, "fastcnn: the mask of batch norm names x, weight, bias and residual");
  const OptionalTensor g = like_x(grad, x, layout), r = like_x(residual, x, layout);
  const Planes p = planes_of(x);
  const Tensor m = channel_vector(mean, x), i = channel_vector(invstd, x);
  const ScaleShift folded = fold_batch_norm_invstd(x, weight, bias, m, i);
  const bool for_weight = mask[1] && weight, for_bias = mask[2] && bias;
  const auto image = [&](bool wanted) {
    return wanted ? empty_4d(x, x.size(0), x.size(1), x.size(2), x.size(3), layout) : no_tensor(x);
  };
  const Tensor grad_x = image(mask[0]), grad_residual = image(mask[3]);
  const Tensor grad_weight = accumulator_vector(x, for_weight ? p.C : 0);
  const Tensor grad_bias = accumulator_vector(x, for_bias ? p.C : 0);
  const Tensor scratch = empty_1d(x, batch_norm_scratch(p.N, p.C, p.HW), torch::headeronly::ScalarType::Double);
  const auto wanted = [](bool on, const Tensor& t) { return on ? mutable_data(t) : nullptr; };
  batch_norm_act_backward_kernel_dispatch(
      {dtype_of(x), activation, layout, p.N, p.C, p.HW, training, data(g), data(x), data(r), data(folded.scale),
       data(folded.shift), data(m), data(i), wanted(mask[0], grad_x), wanted(for_weight, grad_weight),
       wanted(for_bias, grad_bias), wanted(mask[3], grad_residual), static_cast<double*>(mutable_data(scratch))});
  return {grad_x, for_weight ? in_dtype(grad_weight, weight->scalar_type()) : no_tensor(x),
          for_bias ? in_dtype(grad_bias, bias->scalar_type()) : no_tensor(x), grad_residual};
}

}  // namespace fastcnn
