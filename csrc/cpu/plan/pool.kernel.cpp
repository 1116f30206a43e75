// SPDX-License-Identifier: Apache-2.0
// Pooling over a window, and the mean over all pixels.
#include <limits>

#include "kernels.h"
#include "tile.h"

namespace fastcnn {
namespace plan {
inline namespace FASTCNN_ISA {
namespace {

// max that takes a NaN over a number, as PyTorch's pools do: maximum() does so for `value` alone
FASTCNN_INLINE V larger(V value, V most) { return select(most <= most, maximum(value, most), most); }

void pool(const Call& call) {
  const auto& a = call.args<PoolArgs>();
  const Map &x = call.map(a.x), &y = call.map(a.y);
  const Range mine = call.team.share(y.images * y.H);
  for (int64_t row = mine.begin; row < mine.end; ++row) {
    const int64_t image = row / y.H, oy = row - image * y.H, top = oy * a.stride_h - a.pad_top;
    const int64_t y_begin = std::max<int64_t>(top, 0), y_end = std::min(top + a.kernel_h, x.H);
    for (int64_t ox = 0; ox < y.W; ++ox) {
      const int64_t left = ox * a.stride_w - a.pad_left;
      const int64_t x_begin = std::max<int64_t>(left, 0), x_end = std::min(left + a.kernel_w, x.W);
      const int64_t valid = std::max<int64_t>(0, y_end - y_begin) * std::max<int64_t>(0, x_end - x_begin);
      const V share(1.f / float(a.kind == Pool::kMean ? a.kernel_h * a.kernel_w : std::max<int64_t>(valid, 1)));
      float* to = y.at(image, oy, ox);
      over_lanes<V>(y.C, [&](int64_t c, auto lanes) {
        V value(a.kind == Pool::kMax ? -std::numeric_limits<float>::infinity() : 0.f);
        for (int64_t iy = y_begin; iy < y_end; ++iy)
          for (int64_t ix = x_begin; ix < x_end; ++ix) {
            const V each = lanes.load(x.at(image, iy, ix) + c);
            value = a.kind == Pool::kMax ? larger(each, value) : value + each;
          }
        lanes.store(a.kind == Pool::kMax ? value : value * share, to + c);
      });
    }
  }
}

void global_pool(const Call& call) {
  const auto& a = call.args<GlobalPoolArgs>();
  const Map &x = call.map(a.x), &y = call.map(a.y);
  const int64_t vectors = ceil_div(x.C, kLanes);
  const Range mine = call.team.share(x.images * vectors);
  const V share(1.f / float(x.H * x.W));
  for (int64_t item = mine.begin; item < mine.end; ++item) {
    const int64_t image = item / vectors, channel = (item - image * vectors) * kLanes;
    const int count = int(std::min<int64_t>(kLanes, x.C - channel));
    V sums[4];
    for (int64_t iy = 0; iy < x.H; ++iy) {
      const float* from = x.at(image, iy) + channel;
      for (int64_t ix = 0; ix < x.W; ++ix, from += x.pixel) sums[ix & 3] = sums[ix & 3] + V::load(from, count);
    }
    ((sums[0] + sums[1] + (sums[2] + sums[3])) * share).store(y.at(image) + channel, count);
  }
}

}  // namespace

extern const Kernel kPool, kGlobalPool;
const Kernel kPool{pool};
const Kernel kGlobalPool{global_pool};

}  // namespace FASTCNN_ISA
}  // namespace plan
}  // namespace fastcnn
