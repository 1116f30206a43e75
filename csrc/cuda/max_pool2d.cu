// SPDX-License-Identifier: Apache-2.0
// The entry functions are those of the CPU (csrc/cpu/max_pool2d_entry.h); here is what they launch.
#include "max_pool2d.cuh"

#include "../common/dispatch.h"
#include "../cpu/max_pool2d_entry.h"
#include "on_device.h"

namespace fastcnn {
namespace {

void check_sizes(const PoolGeometry& g) {
  constexpr int64_t kLimit = int64_t(1) << 30;
  STD_TORCH_CHECK(g.H < kLimit && g.W < kLimit, "fastcnn: max_pool2d: x must have fewer than 2^30 rows and columns");
}

}  // namespace

void max_pool2d_forward_kernel_dispatch(const MaxPool2dArgs& a) {
  check_sizes(a.geometry);
  dispatch_dtype(a.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    check_launch("max_pool2d",
                 launch_max_pool2d(a.geometry, static_cast<const S*>(a.x), static_cast<S*>(a.y), current_stream()));
  });
}

void max_pool2d_backward_kernel_dispatch(const MaxPool2dBackwardArgs& a) {
  check_sizes(a.geometry);
  dispatch_dtype(a.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    check_launch("max_pool2d_backward",
                 launch_max_pool2d_backward(a.geometry, static_cast<const S*>(a.grad), static_cast<const S*>(a.x),
                                            static_cast<S*>(a.grad_x), current_stream()));
  });
}

namespace {

struct Forward {
  static constexpr const char* kName = "max_pool2d";
  static constexpr const char* kTensors[] = {"x"};
};
struct Backward {
  static constexpr const char* kName = "max_pool2d_backward";
  static constexpr const char* kTensors[] = {"grad", "x"};
};

}  // namespace
}  // namespace fastcnn

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CUDA, m) {
  using namespace fastcnn;
  m.impl("max_pool2d", TORCH_BOX((&OnDevice<Forward, &max_pool2d_entry>::call)));
  m.impl("max_pool2d_backward", TORCH_BOX((&OnDevice<Backward, &max_pool2d_backward_entry>::call)));
}
