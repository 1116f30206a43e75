// SPDX-License-Identifier: Apache-2.0
#include "channel_shuffle.cuh"

#include "entry.h"

namespace fastcnn {
namespace {

struct Operand {
  Tensor x;
  int64_t stride;  // of pixels (NHWC) or images (NCHW)
};

// x where it lies when it is dense or a channel slice, else a dense copy.
Operand operand(const Tensor& x, Layout layout) {
  const int64_t slice = x.dim() == 4 ? channel_slice_stride(x, layout) : 0;
  if (slice > 0) return {x, slice};
  const Tensor dense = x.dim() == 4 ? as_layout(x, layout) : as_contiguous(x);
  return {dense, layout == Layout::kNHWC ? x.size(1) : x.size(0) > 0 ? x.numel() / x.size(0) : 0};
}

void run(const char* op, const Operand& first, const Operand* second, const Tensor& y, const ShuffleShape& shape,
         cudaStream_t stream) {
  const auto of_width = [&](auto zero) {
    using S = decltype(zero);
    const ShuffleTensors<S> tensors = {data<S>(first.x), first.stride, second ? data<S>(second->x) : nullptr,
                                       second ? second->stride : 0, static_cast<S*>(mutable_data(y))};
    check_launch(op, launch_channel_shuffle(tensors, shape, stream));
  };
  switch (dtype_of(y)) {
    case Dtype::kFloat16:
    case Dtype::kBFloat16: return of_width(Half{});
    case Dtype::kFloat32: return of_width(0.0f);
    case Dtype::kFloat64: return of_width(0.0);
  }
}

}  // namespace

Tensor channel_shuffle_cuda(const Tensor& x, int64_t groups) {
  constexpr char kOp[] = "channel_shuffle";
  check_beside(kOp, x, x, "x");
  STD_TORCH_CHECK(x.dim() >= 3 && groups > 0 && x.size(1) % groups == 0,
                  "fastcnn: channel_shuffle needs [N, C, *] and groups that divide C");
  const DeviceOf device(x);
  const Layout layout = layout_of(x);
  const Tensor y = x.dim() == 4 ? empty_4d(x, x.size(0), x.size(1), x.size(2), x.size(3), layout)
                                : torch::stable::new_empty(x, x.sizes());
  if (x.numel() == 0) return y;
  const int64_t N = x.size(0), C = x.size(1);
  run(kOp, operand(x, layout), nullptr, y, {layout, N, C, x.numel() / (N * C), groups}, device.stream());
  return y;
}

Tensor channel_shuffle_concat_cuda(const Tensor& x1, const Tensor& x2) {
  constexpr char kOp[] = "channel_shuffle_concat";
  check_beside(kOp, x1, x1, "x1");
  check_beside(kOp, x2, x1, "x2");
  STD_TORCH_CHECK(x1.dim() == 4 && x2.dim() == 4 && x1.scalar_type() == x2.scalar_type(),
                  "fastcnn: channel_shuffle_concat needs two [N, C, H, W] tensors of one dtype");
  for (int d = 0; d < 4; ++d)
    STD_TORCH_CHECK(x1.size(d) == x2.size(d), "fastcnn: channel_shuffle_concat needs two tensors of one shape");
  const DeviceOf device(x1);
  const Layout layout = layout_of(x1);
  const int64_t N = x1.size(0), C = x1.size(1), H = x1.size(2), W = x1.size(3);
  const Tensor y = empty_4d(x1, N, 2 * C, H, W, layout);
  if (y.numel() == 0) return y;
  const Operand first = operand(x1, layout), second = operand(x2, layout);
  run(kOp, first, &second, y, {layout, N, 2 * C, H * W, 2}, device.stream());
  return y;
}

}  // namespace fastcnn

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CUDA, m) {
  m.impl("channel_shuffle", TORCH_BOX(&fastcnn::channel_shuffle_cuda));
  m.impl("channel_shuffle_concat", TORCH_BOX(&fastcnn::channel_shuffle_concat_cuda));
}
