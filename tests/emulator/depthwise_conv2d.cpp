// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"

#include "../../csrc/cuda/depthwise_conv2d.cuh"
#include "depthwise_geometry.h"
#include "depthwise_naive.h"

PYBIND11_MODULE(emulated_depthwise_conv2d, m) {
  using namespace fastcnn;
  bind_emulator(m);
  // An address of 0 is an absent tensor.
  m.def("depthwise_conv2d", [](const std::string& dtype, uintptr_t x, uintptr_t weight, uintptr_t scale,
                               uintptr_t shift, uintptr_t residual, uintptr_t y, std::array<int64_t, 7> sizes,
                               std::array<int64_t, 2> stride, std::array<int64_t, 4> padding,
                               std::array<int64_t, 2> dilation, bool channels_last, int activation, uintptr_t sums) {
    const ConvGeometry g = geometry_of(sizes, stride, padding, dilation, channels_last);
    dispatch_named(dtype, [&](auto tag) {
      using S = typename decltype(tag)::type;
      using A = Accumulator<S>;
      const DepthwiseTensors<S> t = {at<const S>(x),     at<const S>(weight),   at<const A>(scale),
                                     at<const A>(shift), at<const S>(residual), at<S>(y),
                                     nullptr,            at<float>(sums)};
      check(launch_depthwise_conv2d(t, g, Activation(activation), nullptr));
    });
  });
  m.def("sum_tiles", [](const std::string& dtype, std::array<int64_t, 7> sizes, std::array<int64_t, 2> stride,
                        std::array<int64_t, 4> padding, std::array<int64_t, 2> dilation, bool channels_last) {
    int64_t tiles = 0;
    dispatch_named(dtype, [&](auto tag) {
      tiles = depthwise_sum_tiles(DepthwiseTensors<typename decltype(tag)::type>{},
                                  geometry_of(sizes, stride, padding, dilation, channels_last));
    });
    return tiles;
  });
  m.def("naive_depthwise",
        [](uintptr_t x, uintptr_t weight, uintptr_t y, int N, int C, int H, int W, int stride, bool along_w) {
          constexpr int kThreads = 128;
          const int Ho = (H - 1) / stride + 1, Wo = (W - 1) / stride + 1;
          const auto kernel = along_w ? &naive_depthwise_kernel<true> : &naive_depthwise_kernel<false>;
          const dim3 grid(unsigned(ceil_div(int64_t(Ho) * Wo * C / 8, kThreads)), unsigned(N));
          check(launch(kernel, grid, dim3(kThreads), 0, nullptr, at<const Half>(x), at<const Half>(weight), at<Half>(y),
                       H, W, C, stride));
        });
}
