// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"

#include "../../csrc/cuda/max_pool2d.cuh"

namespace {

// sizes: N, C, H, W, kH, kW, stride_h, stride_w, pad_top, pad_left
fastcnn::PoolGeometry geometry_of(const std::array<int64_t, 10>& s, bool ceil_mode, bool channels_last) {
  using namespace fastcnn;
  PoolGeometry g{};
  g.N = s[0], g.C = s[1], g.H = s[2], g.W = s[3], g.kH = s[4], g.kW = s[5];
  g.stride_h = s[6], g.stride_w = s[7], g.pad_top = s[8], g.pad_left = s[9];
  g.Ho = pool_output_size(g.H, g.pad_top, g.kH, g.stride_h, ceil_mode);
  g.Wo = pool_output_size(g.W, g.pad_left, g.kW, g.stride_w, ceil_mode);
  g.layout = channels_last ? Layout::kNHWC : Layout::kNCHW;
  return g;
}

}  // namespace

PYBIND11_MODULE(emulated_max_pool2d, m) {
  using namespace fastcnn;
  bind_emulator(m);
  m.def("max_pool2d", [](const std::string& dtype, uintptr_t x, uintptr_t y, std::array<int64_t, 10> sizes,
                         bool ceil_mode, bool channels_last, int64_t full) {
    dispatch_named(dtype, [&](auto tag) {
      using S = typename decltype(tag)::type;
      check(launch_max_pool2d(geometry_of(sizes, ceil_mode, channels_last), at<const S>(x), at<S>(y), nullptr,
                              full));
    });
  });
  m.def("max_pool2d_backward", [](const std::string& dtype, uintptr_t grad, uintptr_t x, uintptr_t grad_x,
                                  std::array<int64_t, 10> sizes, bool ceil_mode, bool channels_last, int64_t full) {
    dispatch_named(dtype, [&](auto tag) {
      using S = typename decltype(tag)::type;
      check(launch_max_pool2d_backward(geometry_of(sizes, ceil_mode, channels_last), at<const S>(grad),
                                       at<const S>(x), at<S>(grad_x), nullptr, full));
    });
  });
}
