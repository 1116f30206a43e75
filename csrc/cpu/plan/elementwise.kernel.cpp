// SPDX-License-Identifier: Apache-2.0
// What is left between convolutions: sums and products of maps, batch norm, an activation alone, a copy into a slice; and
// the channel shuffle.
#include "kernels.h"
#include "tile.h"

namespace fastcnn {
namespace plan {
inline namespace FASTCNN_ISA {
namespace {

void elementwise(const Call& call) {
  const auto& a = call.args<ElementwiseArgs>();
  const Map &x = call.map(a.x), &y = call.map(a.y);
  const Map* other = call.optional_map(a.other);
  const bool spread = other != nullptr && other->H == 1 && other->W == 1;  // one value for all pixels of an image
  const float *scale = call.weight(a.scale), *shift = call.weight(a.shift);
  const int64_t pixels = y.H * y.W;
  const Range mine = call.team.share(y.images * pixels);
  dispatch_activation(a.activation(), [&](auto functor) {
    for (int64_t p = mine.begin; p < mine.end; ++p) {
      const int64_t image = p / pixels, inside = p - image * pixels;
      const float* from = x.data + image * x.image + inside * x.pixel;
      const float* with = other == nullptr ? nullptr : other->data + image * other->image + (spread ? 0 : inside * other->pixel);
      float* to = y.data + image * y.image + inside * y.pixel;
      over_lanes<V>(y.C, [&](int64_t i, auto lanes) {
        V value = lanes.load(from + i);
        if (scale != nullptr) value = value * lanes.load(scale + i);
        if (shift != nullptr) value = value + lanes.load(shift + i);
        if (a.kind == Binary::kAdd) value = value + lanes.load(with + i);
        else if (a.kind == Binary::kMultiply) value = value * lanes.load(with + i);
        lanes.store(functor(value), to + i);
      });
    }
  });
}

void shuffle(const Call& call) {
  const auto& a = call.args<ShuffleArgs>();
  const Map &x = call.map(a.x), &y = call.map(a.y);
  const Map* second = call.optional_map(a.second);
  const int64_t pixels = y.H * y.W, part = y.C / a.groups;
  const Range mine = call.team.share(y.images * pixels);
  for (int64_t p = mine.begin; p < mine.end; ++p) {
    const int64_t image = p / pixels, inside = p - image * pixels;
    const float* from = x.data + image * x.image + inside * x.pixel;
    float* to = y.data + image * y.image + inside * y.pixel;
    for (int64_t group = 0; group < a.groups; ++group) {
      const float* source = second == nullptr || group == 0 ? from + (second == nullptr ? group * part : 0)
                                                            : second->data + image * second->image + inside * second->pixel;
      for (int64_t i = 0; i < part; ++i) to[i * a.groups + group] = source[i];
    }
  }
}

}  // namespace

extern const Kernel kElementwise, kShuffle;
const Kernel kElementwise{elementwise};
const Kernel kShuffle{shuffle};

}  // namespace FASTCNN_ISA
}  // namespace plan
}  // namespace fastcnn
