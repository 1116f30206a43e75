// SPDX-License-Identifier: Apache-2.0
// Depthwise 3x3 as one would write it first: a thread computes one output pixel of 8 channels. What
// test_depthwise_bytes.py must turn down.
#pragma once

#include "../../csrc/cuda/vec.cuh"

namespace fastcnn {

// kAlongW: neighbouring threads have neighbouring pixels, else neighbouring channels.
template <bool kAlongW>
__global__ void naive_depthwise_kernel(const Half* x, const Half* weight, Half* y, int H, int W, int C, int stride) {
  constexpr int kLanes = 8;
  const int Ho = (H - 1) / stride + 1, Wo = (W - 1) / stride + 1, groups = C / kLanes, pixels = Ho * Wo;
  const int id = int(blockIdx.x * blockDim.x + threadIdx.x), n = int(blockIdx.y);
  if (id >= pixels * groups) return;
  const int pixel = kAlongW ? id % pixels : id / groups, c = (kAlongW ? id / pixels : id % groups) * kLanes;
  const int oh = pixel / Wo, ow = pixel % Wo;
  float sum[kLanes] = {};
  for (int r = 0; r < 3; ++r) {
    for (int q = 0; q < 3; ++q) {
      const int ih = oh * stride + r - 1, iw = ow * stride + q - 1;
      float v[kLanes];
      widen(load<kLanes>(x + ((int64_t(n) * H + ih) * W + iw) * C + c, ih >= 0 && ih < H && iw >= 0 && iw < W), v);
      for (int e = 0; e < kLanes; ++e) {
        float w[1];
        widen(load<1>(weight + (c + e) * 9 + r * 3 + q, true), w);
        sum[e] += v[e] * w[0];
      }
    }
  }
  store(y + ((int64_t(n) * Ho + oh) * Wo + ow) * C + c, narrow<Half>(sum), true);
}

}  // namespace fastcnn
