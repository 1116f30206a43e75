// SPDX-License-Identifier: Apache-2.0
// A convolution as the tests name it.
#pragma once

#include <array>

#include "../../csrc/common/shape.h"

namespace fastcnn {

// sizes: N, C, H, W, O, kH, kW; padding: left, right, top, bottom.
inline ConvGeometry geometry_of(std::array<int64_t, 7> sizes, std::array<int64_t, 2> stride,
                                std::array<int64_t, 4> padding, std::array<int64_t, 2> dilation, bool channels_last) {
  ConvGeometry g{};
  g.N = sizes[0], g.C = sizes[1], g.H = sizes[2], g.W = sizes[3], g.O = sizes[4], g.kH = sizes[5], g.kW = sizes[6],
  g.groups = g.C;
  g.stride_h = stride[0], g.stride_w = stride[1], g.dilation_h = dilation[0], g.dilation_w = dilation[1];
  g.pad_left = padding[0], g.pad_right = padding[1], g.pad_top = padding[2], g.pad_bottom = padding[3];
  g.Ho = conv_output_size(g.H, g.pad_top, g.pad_bottom, g.kH, g.stride_h, g.dilation_h);
  g.Wo = conv_output_size(g.W, g.pad_left, g.pad_right, g.kW, g.stride_w, g.dilation_w);
  g.layout = channels_last ? Layout::kNHWC : Layout::kNCHW;
  return g;
}

}  // namespace fastcnn
