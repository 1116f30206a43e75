// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"

#include "../../csrc/cuda/activation.cuh"

PYBIND11_MODULE(emulated_activation, m) {
  using namespace fastcnn;
  bind_emulator(m);
  m.def("activation", [](const std::string& dtype, int kind, uintptr_t grad, uintptr_t x, uintptr_t y, int64_t count) {
    dispatch_named(dtype, [&](auto tag) {
      using S = typename decltype(tag)::type;
      check(launch_activation(Activation(kind), at<const S>(grad), at<const S>(x), at<S>(y), count, nullptr));
    });
  });
}
