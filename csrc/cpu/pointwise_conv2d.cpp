// SPDX-License-Identifier: Apache-2.0
// The kernel is conv_bn_act's for 1x1 convolutions, with a prologue.
#include "pointwise_conv2d_entry.h"

STABLE_TORCH_LIBRARY_IMPL(fastcnn, CPU, m) { m.impl("pointwise_conv2d", TORCH_BOX(&fastcnn::pointwise_conv2d_entry)); }
