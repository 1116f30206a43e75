// SPDX-License-Identifier: Apache-2.0
// What is left between convolutions: sums and products of maps, batch norm, an activation alone, a copy into a slice; and
// the channel shuffle.
//
// Maps without gaps between their pixels are one row of all floats, unless a vector of C values takes part. A step may
// write over what it reads: every place is read before it is written.
#include "kernels.h"
#include "tile.h"

namespace fastcnn {
namespace plan {
inline namespace FASTCNN_ISA {
namespace {

struct Operands {
  const float *x, *other, *scale, *shift, *residual;
  float* y;
};

// kMore: with a scale, a shift or a residual.
template <Binary kKind, bool kMore, typename F> FASTCNN_INLINE void row(const Operands& a, int64_t count, F functor) {
  over_lanes<V>(count, [&](int64_t i, auto lanes) {
    V value = lanes.load(a.x + i);
    if (kMore) {
      if (a.scale != nullptr) value = value * lanes.load(a.scale + i);
      if (a.shift != nullptr) value = value + lanes.load(a.shift + i);
    }
    if (kKind == Binary::kAdd) value = value + lanes.load(a.other + i);
    if (kKind == Binary::kSubtract) value = value - lanes.load(a.other + i);
    if (kKind == Binary::kMultiply) value = value * lanes.load(a.other + i);
    if (kMore && a.residual != nullptr) value = value + lanes.load(a.residual + i);
    lanes.store(functor(value), a.y + i);
  });
}

template <typename F> void dispatch_row(Binary kind, bool more, F&& f) {
  dispatch_bool(more, [&](auto kMore) {
    switch (kind) {
      case Binary::kNone: return f(std::integral_constant<Binary, Binary::kNone>{}, kMore);
      case Binary::kAdd: return f(std::integral_constant<Binary, Binary::kAdd>{}, kMore);
      case Binary::kMultiply: return f(std::integral_constant<Binary, Binary::kMultiply>{}, kMore);
      case Binary::kSubtract: return f(std::integral_constant<Binary, Binary::kSubtract>{}, kMore);
    }
  });
}

bool gapless(const Map* map) {
  return map == nullptr || (map->pixel == map->C && map->row == map->W * map->C && map->image == map->H * map->row);
}

void elementwise(const Call& call) {
  const auto& a = call.args<ElementwiseArgs>();
  const Map &x = call.map(a.x), &y = call.map(a.y);
  const Map *other = call.optional_map(a.other), *residual = call.optional_map(a.residual);
  const bool spread = other != nullptr && other->H == 1 && other->W == 1;  // one value for all pixels of an image
  const bool affine = a.scale != kNone || a.shift != kNone;
  const bool flat = !affine && !spread && gapless(&x) && gapless(&y) && gapless(other) && gapless(residual);
  const int64_t pixels = y.H * y.W;
  const Range mine = call.team.share(y.images * pixels);
  const int64_t run = flat ? mine.end - mine.begin : 1;  // pixels of a row
  dispatch_activation(a.activation(), [&](auto functor) {
    dispatch_row(a.kind, affine || residual != nullptr, [&](auto kind, auto more) {
      for (int64_t p = mine.begin; p < mine.end; p += run) {
        const int64_t image = p / pixels, inside = p - image * pixels;
        const float* with = other == nullptr ? nullptr : other->data + image * other->image + (spread ? 0 : inside * other->pixel);
        const float* added = residual == nullptr ? nullptr : residual->data + image * residual->image + inside * residual->pixel;
        const Operands each{x.data + image * x.image + inside * x.pixel, with, call.weight(a.scale), call.weight(a.shift), added,
                            y.data + image * y.image + inside * y.pixel};
        row<decltype(kind)::value, decltype(more)::value>(each, run * y.C, functor);
      }
    });
  });
}

// to[2 i] = first[i], to[2 i + 1] = second[i]
FASTCNN_INLINE void interleave_row(const float* first, const float* second, float* to, int64_t count) {
  over_lanes<V>(count, [&](int64_t i, auto lanes) {
    V low, high;
    interleave(lanes.load(first + i), lanes.load(second + i), low, high);
    if constexpr (decltype(lanes)::kFull) {
      low.store(to + 2 * i);
      high.store(to + 2 * i + kLanes);
    } else {
      low.store(to + 2 * i, std::min(2 * lanes.n, kLanes));
      if (2 * lanes.n > kLanes) high.store(to + 2 * i + kLanes, 2 * lanes.n - kLanes);
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
    if (a.groups == 2) {
      interleave_row(from, second == nullptr ? from + part : second->data + image * second->image + inside * second->pixel, to, part);
      continue;
    }
    for (int64_t i = 0; i < part; ++i)
      for (int64_t group = 0; group < a.groups; ++group) to[i * a.groups + group] = from[group * part + i];
  }
}

}  // namespace

extern const Kernel kElementwise, kShuffle;
const Kernel kElementwise{elementwise};
const Kernel kShuffle{shuffle};

}  // namespace FASTCNN_ISA
}  // namespace plan
}  // namespace fastcnn
