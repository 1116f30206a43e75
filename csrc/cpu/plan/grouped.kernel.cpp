// SPDX-License-Identifier: Apache-2.0
// Convolutions in groups of 2, 4 or 8 channels (ResNeXt, RegNet): as many groups as a vector has lanes for, at once.
//
// The tile of 12 pixels by one vector of channels keeps its sums in registers. A vector of x holds all channels that its
// groups read; a shuffle spreads channel j of each group over the group's lanes, so that a tap costs as many FMAs as a group
// has channels, where a matrix product would multiply by the zeros of the other groups. x is read where it lies: taps beyond
// its rows are left out, and the pixels at the ends of a row, whose windows hang over, come one by one. A thread takes rows
// of y and walks a vector of channels down all of them: its weights, 2 to 5 KB, stay in L1 beside the rows under the window.
#include <utility>

#include "kernels.h"
#include "share.h"
#include "tile.h"

namespace fastcnn {
namespace plan {
inline namespace FASTCNN_ISA {
namespace {

constexpr int kPixels = kRegisters == 32 ? 12 : 6;

// Lane l: lane l / G * G + J of x.
template <int G, int J, int... L> FASTCNN_INLINE V spread(V x, std::integer_sequence<int, L...>) {
#if defined(__clang__)
  return V(__builtin_shufflevector(x.v, x.v, (L / G * G + J)...));
#else
  typedef int Lanes __attribute__((vector_size(kLanes * sizeof(int))));
  return V(__builtin_shuffle(x.v, Lanes{(L / G * G + J)...}));
#endif
}

// The taps that a tile adds up: rows x columns of them, from the first one on.
struct Taps {
  const float *in, *weight;
  int64_t rows, columns;
  int64_t row, column;  // floats of x from tap to tap
  int64_t weight_row;
};

struct Strip {
  const GroupedArgs& a;
  const Map &x, &y;
  const Map* residual;
  int64_t channel;
  const float *weight, *bias;
};

template <int G, int... J> FASTCNN_INLINE V add_channels(V sum, V x, const float* weight, std::integer_sequence<int, J...>) {
  ((sum = fma(spread<G, J>(x, std::make_integer_sequence<int, kLanes>()), V::load(weight + J * kLanes), sum)), ...);
  return sum;
}

template <int G, int P, typename Lanes>
__attribute__((noinline)) void tile_of(const Strip& s, const Taps& taps, int64_t image, int64_t oy, int64_t ox, Lanes lanes) {
  decltype(V::v) sum[P];
  const V bias = s.bias == nullptr ? V(0) : V::load(s.bias);
#pragma GCC unroll 12
  for (int p = 0; p < P; ++p) sum[p] = bias.v;
  const int64_t pixel = s.a.stride_w * s.x.pixel;
  for (int64_t ky = 0; ky < taps.rows; ++ky)
    for (int64_t kx = 0; kx < taps.columns; ++kx) {
      const float *in = taps.in + ky * taps.row + kx * taps.column, *weight = taps.weight + ky * taps.weight_row + kx * G * kLanes;
#pragma GCC unroll 12
      for (int p = 0; p < P; ++p)
        sum[p] = add_channels<G>(V(sum[p]), lanes.load(in + p * pixel), weight, std::make_integer_sequence<int, G>()).v;
    }
  if (s.residual != nullptr) {
    const float* residual = s.residual->at(image, oy, ox) + s.channel;
#pragma GCC unroll 12
    for (int p = 0; p < P; ++p) sum[p] = (V(sum[p]) + lanes.load(residual + p * s.residual->pixel)).v;
  }
  const Activation activation = s.a.activation();
  float* y = s.y.at(image, oy, ox) + s.channel;
#pragma GCC unroll 12
  for (int p = 0; p < P; ++p) lanes.store(activation == Activation::kRelu ? Relu()(V(sum[p])) : V(sum[p]), y + p * s.y.pixel);
  if (activation != Activation::kIdentity && activation != Activation::kRelu)
    activate_rows(activation, y, s.y.pixel, P, std::min<int64_t>(kLanes, s.y.C - s.channel));
}

template <int G, int P, typename Lanes>
void tiles(const Strip& s, Taps taps, int64_t image, int64_t oy, int64_t ox, int64_t end, Lanes lanes) {
  for (; ox + P <= end; ox += P, taps.in += P * s.a.stride_w * s.x.pixel) tile_of<G, P>(s, taps, image, oy, ox, lanes);
  if constexpr (P > 1) tiles<G, P / 2>(s, taps, image, oy, ox, end, lanes);
}

template <int G, typename Lanes> void row(const Strip& s, int64_t image, int64_t oy, Lanes lanes) {
  const GroupedArgs& a = s.a;
  const Map& x = s.x;
  const int64_t top = oy * a.stride_h - a.pad_top;
  const int64_t above = top < 0 ? ceil_div(-top, a.dilation_h) : 0, first = std::min(above, a.kernel_h);
  const int64_t below = top < x.H ? ceil_div(x.H - top, a.dilation_h) : 0, last = std::max(first, std::min(below, a.kernel_h));
  const auto pixels = [&](int64_t ox, int64_t end) {
    const int64_t left = ox * a.stride_w - a.pad_left, right = (end - 1) * a.stride_w - a.pad_left;
    const int64_t before = left < 0 ? ceil_div(-left, a.dilation_w) : 0, from = std::min(before, a.kernel_w);
    const int64_t within = right < x.W ? ceil_div(x.W - right, a.dilation_w) : 0, to = std::max(from, std::min(within, a.kernel_w));
    Taps taps{x.data, s.weight + (first * a.kernel_w + from) * G * kLanes, last - first, to - from,
              a.dilation_h * x.row, a.dilation_w * x.pixel, a.kernel_w * G * kLanes};
    if (first < last && from < to) taps.in = x.at(image, top + first * a.dilation_h, left + from * a.dilation_w) + s.channel;
    else taps.rows = 0;
    tiles<G, kPixels>(s, taps, image, oy, ox, end, lanes);
  };
  const int64_t reach = (a.kernel_w - 1) * a.dilation_w;
  const int64_t begin = std::min(s.y.W, ceil_div(a.pad_left, a.stride_w));
  const int64_t end = std::max(begin, std::min(s.y.W, x.W + a.pad_left - reach > 0 ? (x.W + a.pad_left - reach - 1) / a.stride_w + 1 : 0));
  for (int64_t ox = 0; ox < begin; ++ox) pixels(ox, ox + 1);
  if (begin < end) pixels(begin, end);
  for (int64_t ox = end; ox < s.y.W; ++ox) pixels(ox, ox + 1);
}

template <int G> void grouped_of(const Call& call, const GroupedArgs& a) {
  const Map &x = call.map(a.x), &y = call.map(a.y);
  const int64_t taps = a.kernel_h * a.kernel_w;
  const Part mine = part(y.images * y.H, ceil_div(y.C, kLanes), y.W * taps * G, kLanes, call.team);
  for (int64_t vector = mine.vectors.begin; vector < mine.vectors.end; ++vector) {
    const int64_t channel = vector * kLanes;
    const Strip s{a, x, y, call.optional_map(a.residual), channel, call.weight(a.weight) + channel * taps * G,
                  a.bias == kNone ? nullptr : call.weight(a.bias) + channel};
    for (int64_t at = mine.rows.begin; at < mine.rows.end; ++at) {
      const int64_t image = at / y.H, oy = at - image * y.H;
      if (y.C - channel >= kLanes) row<G>(s, image, oy, All<V>{});
      else row<G>(s, image, oy, First<V>{int(y.C - channel)});
    }
  }
}

void grouped(const Call& call) {
  const auto& a = call.args<GroupedArgs>();
  if (a.group == 2) return grouped_of<2>(call, a);
  if constexpr (kLanes > 4)
    if (a.group == 4) return grouped_of<4>(call, a);
  if constexpr (kLanes > 8)
    if (a.group == 8) return grouped_of<8>(call, a);
}

}  // namespace

extern const Kernel kGrouped;
const Kernel kGrouped{grouped};

}  // namespace FASTCNN_ISA
}  // namespace plan
}  // namespace fastcnn
