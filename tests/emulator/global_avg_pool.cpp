// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"

#include "../../csrc/cuda/global_avg_pool.cuh"

PYBIND11_MODULE(emulated_global_avg_pool, m) {
  using namespace fastcnn;
  bind_emulator(m);
  // sizes: N, C, HW; partial: of `room` accumulators. Returns the number of tiles.
  m.def("global_avg_pool", [](const std::string& dtype, uintptr_t x, uintptr_t partial, int64_t room, uintptr_t y,
                              std::array<int64_t, 3> sizes, bool channels_last) {
    int64_t tiles = 0;
    dispatch_named(dtype, [&](auto tag) {
      using S = typename decltype(tag)::type;
      const Layout layout = channels_last ? Layout::kNHWC : Layout::kNCHW;
      const PlanePlan p = plan_plane_sums<S>(layout, sizes[0], sizes[1], sizes[2], at<const S>(x), nullptr);
      tiles = p.tiles;
      if (tiles > 1 && tiles * p.N * p.C > room) throw std::invalid_argument("partial is too small");
      check(launch_global_avg_pool(p, at<const S>(x), at<Accumulator<S>>(partial), at<S>(y), nullptr));
    });
    return tiles;
  });
  // The first of two stages alone.
  m.def("plane_sums", [](const std::string& dtype, uintptr_t x, uintptr_t partial, std::array<int64_t, 3> sizes,
                         bool channels_last) {
    int64_t tiles = 0;
    dispatch_named(dtype, [&](auto tag) {
      using S = typename decltype(tag)::type;
      using A = Accumulator<S>;
      const Layout layout = channels_last ? Layout::kNHWC : Layout::kNCHW;
      const PlanePlan p = plan_plane_sums<S>(layout, sizes[0], sizes[1], sizes[2], at<const S>(x), nullptr);
      tiles = p.tiles;
      check(launch_plane_sums<S, A, false>(p, at<const S>(x), nullptr, at<A>(partial), A(1), nullptr));
    });
    return tiles;
  });
  m.def("global_avg_pool_backward", [](const std::string& dtype, uintptr_t grad, uintptr_t grad_x,
                                       std::array<int64_t, 3> sizes, bool channels_last) {
    dispatch_named(dtype, [&](auto tag) {
      using S = typename decltype(tag)::type;
      const Layout layout = channels_last ? Layout::kNHWC : Layout::kNCHW;
      check(launch_global_avg_pool_backward(layout, sizes[0], sizes[1], sizes[2], at<const S>(grad), at<S>(grad_x),
                                            nullptr));
    });
  });
}
