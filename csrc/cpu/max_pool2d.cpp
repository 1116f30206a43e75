// SPDX-License-Identifier: Apache-2.0
#include "max_pool2d_entry.h"

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CPU, m) {
  m.impl("max_pool2d", TORCH_BOX(&fastcnn::max_pool2d_entry));
  m.impl("max_pool2d_backward", TORCH_BOX(&fastcnn::max_pool2d_backward_entry));
}
