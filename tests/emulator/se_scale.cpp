// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"

#include "../../csrc/cuda/se_scale.cuh"

namespace fastcnn {
namespace {

struct Problem {
  std::string dtype, weight_dtype;
  std::array<int64_t, 4> sizes;  // N, C, R, HW
  bool channels_last;
  int activation, gate;

  Layout layout() const { return channels_last ? Layout::kNHWC : Layout::kNCHW; }
  template <typename W> SeLayers<W> layers(uintptr_t w1, uintptr_t b1, uintptr_t w2, uintptr_t b2) const {
    return se_layers(at<const W>(w1), at<const W>(b1), at<const W>(w2), at<const W>(b2), sizes[0], sizes[1], sizes[2],
                     Activation(activation), Activation(gate));
  }
  // f(tag of x, tag of the weights)
  template <typename F> void dispatch(F&& f) const {
    dispatch_named(dtype, [&](auto tag) {
      if (weight_dtype == dtype) f(tag, tag);
      else f(tag, TypeTag<Accumulator<typename decltype(tag)::type>>{});
    });
  }
};

}  // namespace
}  // namespace fastcnn

PYBIND11_MODULE(emulated_se_scale, m) {
  using namespace fastcnn;
  bind_emulator(m);
  pybind11::class_<Problem>(m, "Problem")
      .def(pybind11::init([](std::string dtype, std::string weight_dtype, std::array<int64_t, 4> sizes,
                             bool channels_last, int activation, int gate) {
        return Problem{dtype, weight_dtype, sizes, channels_last, activation, gate};
      }));
  // tensors: x, w1, b1, w2, b2, partial, pooled, scale, y. Partial holds the sums of `tiles` tiles, or takes them where
  // that is 0. Returns the number of tiles.
  m.def("forward", [](const Problem& p, std::array<uintptr_t, 9> t, int64_t tiles) {
    const int64_t N = p.sizes[0], C = p.sizes[1], HW = p.sizes[3];
    p.dispatch([&](auto tag, auto weight_tag) {
      using S = typename decltype(tag)::type;
      using W = typename decltype(weight_tag)::type;
      using A = Accumulator<S>;
      const S* x = at<const S>(t[0]);
      if (tiles == 0) {
        const PlanePlan plan = plan_plane_sums<S>(p.layout(), N, C, HW, x, nullptr);
        check(launch_plane_sums<S, A, false>(plan, x, nullptr, at<A>(t[5]), A(1), nullptr));
        tiles = plan.tiles;
      }
      check(launch_se_gate(p.layers<W>(t[1], t[2], t[3], t[4]), SeSums<A>{at<const A>(t[5]), tiles},
                           A(1.0 / double(HW)), at<A>(t[6]), at<A>(t[7]), nullptr));
      check(launch_se_scale<S>(p.layout(), N, C, HW, x, at<const A>(t[7]), nullptr, at<S>(t[8]), nullptr));
    });
    return tiles;
  });
  // tensors: grad, x, pooled, w1, b1, w2, b2, partial, room for N (3 C + 2 R) accumulators, grad_x, grad_w1, grad_b1,
  // grad_w2, grad_b2
  m.def("backward", [](const Problem& p, std::array<uintptr_t, 14> t) {
    const int64_t N = p.sizes[0], C = p.sizes[1], R = p.sizes[2], HW = p.sizes[3];
    p.dispatch([&](auto tag, auto weight_tag) {
      using S = typename decltype(tag)::type;
      using W = typename decltype(weight_tag)::type;
      using A = Accumulator<S>;
      const S *grad = at<const S>(t[0]), *x = at<const S>(t[1]);
      A* room = at<A>(t[8]);
      const SeBackward<A> out = {room, room + N * C, room + 2 * N * C, room + 3 * N * C, room + N * (3 * C + R)};
      const PlanePlan plan = plan_plane_sums<S>(p.layout(), N, C, HW, x, grad);
      check(launch_plane_sums<S, A, true>(plan, x, grad, at<A>(t[7]), A(1), nullptr));
      check(launch_se_gate_backward(p.layers<W>(t[3], t[4], t[5], t[6]), SeSums<A>{at<const A>(t[7]), plan.tiles},
                                    at<const A>(t[2]), A(1.0 / double(HW)), out, nullptr));
      check(launch_se_scale<S>(p.layout(), N, C, HW, grad, out.scale, out.grad_pooled, at<S>(t[9]), nullptr));
      check(launch_se_weights_backward(N, C, R, out, at<const A>(t[2]), at<W>(t[10]), at<W>(t[11]), at<W>(t[12]),
                                       at<W>(t[13]), nullptr));
    });
  });
}
