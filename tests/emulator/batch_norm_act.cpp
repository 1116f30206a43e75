// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"

#include "../../csrc/cuda/batch_norm_act_backward.cuh"

PYBIND11_MODULE(emulated_batch_norm_act, m) {
  using namespace fastcnn;
  using Sizes = std::array<int64_t, 3>;  // N, C, H W
  bind_emulator(m);
  const auto shape_of = [](const Sizes& s, bool channels_last) {
    return batch_norm_shape(channels_last ? Layout::kNHWC : Layout::kNCHW, s[0], s[1], s[2]);
  };
  m.def("sums_size", [](const Sizes& s) { return batch_norm_sums_size(s[0], s[1], s[2]); });
  // tensors: x, scale, shift, residual, y. An address of 0 is an absent tensor, here and below.
  m.def("forward", [=](const std::string& dtype, std::array<uintptr_t, 5> t, const Sizes& sizes, bool channels_last,
                       int activation) {
    dispatch_named(dtype, [&](auto tag) {
      using S = typename decltype(tag)::type;
      using A = Accumulator<S>;
      const BatchNormTensors<S> tensors = {at<const S>(t[0]), at<const A>(t[1]), at<const A>(t[2]), at<const S>(t[3]),
                                           at<S>(t[4])};
      check(launch_batch_norm_act_forward(tensors, shape_of(sizes, channels_last), Activation(activation), nullptr));
    });
  });
  // vectors: weight, bias, mean, variance, invstd, scale, shift
  m.def("fold", [](const std::string& dtype, std::array<uintptr_t, 7> t, int64_t C, double eps) {
    dispatch_named(dtype, [&](auto tag) {
      using A = Accumulator<typename decltype(tag)::type>;
      const BatchNormFold<A> vectors = {at<const A>(t[0]), at<const A>(t[1]), at<const A>(t[2]), at<const A>(t[3]),
                                        at<const A>(t[4]), eps,               at<A>(t[5]),       at<A>(t[6])};
      check(launch_batch_norm_act_fold(vectors, C, nullptr));
    });
  });
  // vectors: running_mean, running_var, mean, invstd, new_mean, new_var
  m.def("statistics", [=](const std::string& dtype, uintptr_t x, std::array<uintptr_t, 6> t, uintptr_t parts,
                          const Sizes& sizes, bool channels_last, double momentum, double eps) {
    dispatch_named(dtype, [&](auto tag) {
      using S = typename decltype(tag)::type;
      using A = Accumulator<S>;
      const BatchNormStatistics<A> vectors = {momentum,    eps,         at<const A>(t[0]), at<const A>(t[1]),
                                              at<A>(t[2]), at<A>(t[3]), at<A>(t[4]),       at<A>(t[5])};
      check(launch_batch_norm_act_statistics(at<const S>(x), shape_of(sizes, channels_last), vectors, at<double>(parts),
                                             nullptr));
    });
  });
  // tensors: grad, x, residual, scale, shift, mean, constant, slope, grad_x, grad_residual
  const auto backward_tensors = [](auto tag, const std::array<uintptr_t, 10>& t) {
    using S = typename decltype(tag)::type;
    using A = Accumulator<S>;
    return BatchNormBackward<S>{at<const S>(t[0]), at<const S>(t[1]), at<const S>(t[2]), at<const A>(t[3]),
                                at<const A>(t[4]), at<const A>(t[5]), at<const A>(t[6]), at<const A>(t[7]),
                                at<S>(t[8]),       at<S>(t[9])};
  };
  // vectors: invstd, grad_weight, grad_bias, constant, slope
  m.def("backward_sums", [=](const std::string& dtype, std::array<uintptr_t, 10> t, std::array<uintptr_t, 5> v,
                             uintptr_t parts, const Sizes& sizes, bool channels_last, int activation) {
    dispatch_named(dtype, [&](auto tag) {
      using A = Accumulator<typename decltype(tag)::type>;
      const BatchNormGradientVectors<A> vectors = {at<const A>(t[3]), at<const A>(v[0]), at<A>(v[1]),
                                                   at<A>(v[2]),       at<A>(v[3]),       at<A>(v[4])};
      check(launch_batch_norm_act_backward_sums(backward_tensors(tag, t), shape_of(sizes, channels_last), vectors,
                                                Activation(activation), at<double>(parts), nullptr));
    });
  });
  m.def("backward_input", [=](const std::string& dtype, std::array<uintptr_t, 10> t, const Sizes& sizes,
                              bool channels_last, int activation) {
    dispatch_named(dtype, [&](auto tag) {
      check(launch_batch_norm_act_backward_input(backward_tensors(tag, t), shape_of(sizes, channels_last),
                                                 Activation(activation), nullptr));
    });
  });
}
