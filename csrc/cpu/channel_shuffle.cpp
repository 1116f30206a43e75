// SPDX-License-Identifier: Apache-2.0
#include "channel_shuffle.h"

#include "tensor.h"

namespace fastcnn {

Tensor channel_shuffle_cpu(const Tensor& x, int64_t groups) {
  STD_TORCH_CHECK(x.dim() >= 3 && groups > 0 && x.size(1) % groups == 0, "fastcnn: channel_shuffle needs [N, C, *] and groups that divide C");
  const Layout layout = layout_of(x);
  Tensor dense = x;
  Tensor y = x;
  if (x.dim() == 4) {
    dense = as_layout(x, layout);
    y = empty_4d(x, x.size(0), x.size(1), x.size(2), x.size(3), layout);
  } else {
    dense = as_contiguous(x);
    y = torch::stable::new_empty(x, x.sizes());
  }
  if (x.numel() == 0) return y;
  const int64_t N = x.size(0), C = x.size(1);
  channel_shuffle_kernel_dispatch({dtype_of(x), layout, N, C, x.numel() / (N * C), groups, data(dense), mutable_data(y)});
  return y;
}

namespace {

struct Operand {
  Tensor x;
  int64_t stride;  // of pixels (NHWC) or images (NCHW)
};

// x where it lies when it is dense or a channel slice, else a dense copy.
Operand operand(const Tensor& x, Layout layout) {
  const int64_t slice = channel_slice_stride(x, layout);
  if (slice > 0 && x.is_cpu()) return {x, slice};
  return {as_layout(x, layout), layout == Layout::kNHWC ? x.size(1) : x.size(1) * x.size(2) * x.size(3)};
}

}  // namespace

Tensor channel_shuffle_concat_cpu(const Tensor& x1, const Tensor& x2) {
  STD_TORCH_CHECK(x1.dim() == 4 && x2.dim() == 4 && x1.scalar_type() == x2.scalar_type(),
                  "fastcnn: channel_shuffle_concat needs two [N, C, H, W] tensors of one dtype");
  for (int d = 0; d < 4; ++d)
    STD_TORCH_CHECK(x1.size(d) == x2.size(d), "fastcnn: channel_shuffle_concat needs two tensors of one shape");
  const Layout layout = layout_of(x1);
  const int64_t N = x1.size(0), C = x1.size(1), H = x1.size(2), W = x1.size(3);
  const Operand first = operand(x1, layout), second = operand(x2, layout);
  const Tensor y = empty_4d(x1, N, 2 * C, H, W, layout);
  if (y.numel() == 0) return y;
  channel_shuffle_concat_kernel_dispatch(
      {dtype_of(x1), layout, N, C, H * W, data(first.x), first.stride, data(second.x), second.stride, mutable_data(y)});
  return y;
}

}  // namespace fastcnn

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CPU, m) {
  m.impl("channel_shuffle", TORCH_BOX(&fastcnn::channel_shuffle_cpu));
  m.impl("channel_shuffle_concat", TORCH_BOX(&fastcnn::channel_shuffle_concat_cpu));
}
