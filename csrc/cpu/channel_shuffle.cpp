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

}  // namespace fastcnn

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CPU, m) { m.impl("channel_shuffle", TORCH_BOX(&fastcnn::channel_shuffle_cpu)); }
