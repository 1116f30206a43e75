// SPDX-License-Identifier: Apache-2.0
#include "bindings.h"

#include "../../csrc/cuda/channel_shuffle.cuh"

PYBIND11_MODULE(emulated_channel_shuffle, m) {
  using namespace fastcnn;
  bind_emulator(m);
  // strides: of x1 and x2; sizes: N, channels of y, HW, groups. An x2 of 0 is absent.
  m.def("channel_shuffle", [](int width, uintptr_t x1, uintptr_t x2, std::array<int64_t, 2> strides, uintptr_t y,
                              std::array<int64_t, 4> sizes, bool channels_last) {
    const ShuffleShape shape = {channels_last ? Layout::kNHWC : Layout::kNCHW, sizes[0], sizes[1], sizes[2], sizes[3]};
    const auto of_width = [&](auto zero) {
      using S = decltype(zero);
      check(launch_channel_shuffle(
          ShuffleTensors<S>{at<const S>(x1), strides[0], at<const S>(x2), strides[1], at<S>(y)}, shape, nullptr));
    };
    if (width == 2) of_width(Half{});
    else if (width == 4) of_width(0.0f);
    else of_width(0.0);
  });
}
