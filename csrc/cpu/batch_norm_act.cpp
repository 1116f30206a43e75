// SPDX-License-Identifier: Apache-2.0
#include "batch_norm_act_entry.h"

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CPU, m) {
  m.impl("batch_norm_act", TORCH_BOX(&fastcnn::batch_norm_act_entry));
  m.impl("batch_norm_act_train", TORCH_BOX(&fastcnn::batch_norm_act_train_entry));
  m.impl("batch_norm_act_backward", TORCH_BOX(&fastcnn::batch_norm_act_backward_entry));
}
