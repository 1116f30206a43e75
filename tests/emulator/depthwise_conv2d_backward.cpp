// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"

#include "../../csrc/cuda/depthwise_conv2d_backward.cuh"
#include "depthwise_geometry.h"

PYBIND11_MODULE(emulated_depthwise_conv2d_backward, m) {
  using namespace fastcnn;
  bind_emulator(m);
  // An address of 0 is an absent tensor. tensors: x, weight, shift, residual, grad; the gradient of z is written to y.
  m.def("gradient_of_z", [](const std::string& dtype, std::array<uintptr_t, 5> tensors, uintptr_t y,
                            std::array<int64_t, 7> sizes, std::array<int64_t, 2> stride, std::array<int64_t, 4> padding,
                            std::array<int64_t, 2> dilation, bool channels_last, int activation) {
    const ConvGeometry g = geometry_of(sizes, stride, padding, dilation, channels_last);
    dispatch_named(dtype, [&](auto tag) {
      using S = typename decltype(tag)::type;
      const DepthwiseTensors<S> t = {at<const S>(tensors[0]), at<const S>(tensors[1]), nullptr,
                                     at<const Accumulator<S>>(tensors[2]), at<const S>(tensors[3]), at<S>(y),
                                     at<const S>(tensors[4])};
      check(launch_depthwise_conv2d<S, true>(t, g, Activation(activation), nullptr));
    });
  });
  m.def("partials", [](const std::string& dtype, std::array<int64_t, 7> sizes, std::array<int64_t, 2> stride,
                       std::array<int64_t, 4> padding, std::array<int64_t, 2> dilation, bool channels_last, bool weight,
                       bool bias) {
    int64_t count = 0;
    dispatch_named(dtype, [&](auto tag) {
      count = depthwise_partials<typename decltype(tag)::type>(
          geometry_of(sizes, stride, padding, dilation, channels_last), weight, bias);
    });
    return count;
  });
  // tensors: grad (of z), x, weight; gradients: of x, weight, bias. tile_only: not what reduces the partial sums.
  m.def("backward", [](const std::string& dtype, std::array<uintptr_t, 3> tensors, std::array<uintptr_t, 3> gradients,
                       uintptr_t partials, std::array<int64_t, 7> sizes, std::array<int64_t, 2> stride,
                       std::array<int64_t, 4> padding, std::array<int64_t, 2> dilation, bool channels_last,
                       bool tile_only) {
    const ConvGeometry g = geometry_of(sizes, stride, padding, dilation, channels_last);
    dispatch_named(dtype, [&](auto tag) {
      using S = typename decltype(tag)::type;
      using A = Accumulator<S>;
      const DepthwiseGradients<S> t = {at<const S>(tensors[0]), at<const S>(tensors[1]), at<const S>(tensors[2]),
                                       at<S>(gradients[0]),     at<S>(gradients[1]),     at<A>(gradients[2]),
                                       at<A>(partials)};
      if constexpr (sizeof(S) <= sizeof(float)) {
        if (tile_only && depthwise_backward_has_tile(t, g))
          return check(with_depthwise_tile<DepthwiseGradientTile, S>(g, [&](auto tile) {
            using T = decltype(tile);
            return launch_depthwise_backward_tile<S, T>(t, plan_depthwise_gradient<T>(g), nullptr);
          }));
      }
      if (tile_only) throw std::invalid_argument("these tensors take no tile");
      check(launch_depthwise_conv2d_backward(t, g, nullptr));
    });
  });
}
