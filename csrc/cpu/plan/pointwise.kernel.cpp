// SPDX-License-Identifier: Apache-2.0
// 1x1 convolutions and linear layers: [rows][C] times the packed weights, in place in a channel slice of y.
//
// A team shares the rows, or the vectors of output channels where that leaves less to do for the busiest: on a small map
// each thread then reads only its share of the weights, which come from the L3 cache. Rows go in blocks that stay in L1
// while every panel of weights passes over them; weights beyond kResident pass over all rows at once instead, for they
// come from far. A prologue (gate, batch norm of a pre-activation net) writes a block of rows into scratch first.
#include "kernels.h"
#include "share.h"
#include "tile.h"

namespace fastcnn {
namespace plan {
inline namespace FASTCNN_ISA {
namespace {

constexpr int64_t kBlock = 24 * 1024 / int64_t(sizeof(float));      // of rows: half of L1
constexpr int64_t kResident = 384 * 1024 / int64_t(sizeof(float));  // of weights: stays in L2 beside the map
constexpr int64_t kNear = 64 * 1024 / int64_t(sizeof(float));       // of weights: no need to ask for them early

bool has_prologue(const PointwiseArgs& a) {
  return a.gate != kNone || a.scale != kNone || a.shift != kNone || a.prologue() != Activation::kIdentity;
}

// Whether the images of a map lie one behind another, as its pixels do.
bool gapless(const Map& m) { return m.image == m.H * m.W * m.pixel; }

int64_t vectors_of(const Map& y) { return ceil_div(y.C, kLanes); }

int64_t block_rows(const Map& x, int64_t rows, int64_t vectors, bool prologue) {
  const int64_t in_l1 = std::max<int64_t>(1, kBlock / x.C / kMostRows) * kMostRows;
  const bool far = vectors * x.C * kLanes > kResident;
  if (!far) return std::min(rows, in_l1);
  return prologue ? std::min(rows, std::max(in_l1, kResident / x.C)) : rows;
}

// Rows [first, first + count) of x, all of one image, through scale, shift, activation and gate into out, dense.
void transform(const Call& call, const PointwiseArgs& a, int64_t first, int64_t count, float* out) {
  const Map& x = call.map(a.x);
  const int64_t pixels = x.H * x.W, image = first / pixels;
  const float* from = x.data + image * x.image + (first - image * pixels) * x.pixel;
  const float* gate = a.gate == kNone ? nullptr : call.map(a.gate).at(image);
  const float *scale = call.weight(a.scale), *shift = call.weight(a.shift);
  dispatch_activation(a.prologue(), [&](auto functor) {
    for (int64_t r = 0; r < count; ++r, from += x.pixel, out += x.C)
      over_lanes<V>(x.C, [&](int64_t i, auto lanes) {
        V value = lanes.load(from + i);
        if (scale != nullptr) value = value * lanes.load(scale + i);
        if (shift != nullptr) value = value + lanes.load(shift + i);
        value = functor(value);
        if (gate != nullptr) value = value * lanes.load(gate + i);
        lanes.store(value, out + i);
      });
  });
}

void pointwise(const Call& call) {
  const auto& a = call.args<PointwiseArgs>();
  const Map &x = call.map(a.x), &y = call.map(a.y);
  const Map* residual = call.optional_map(a.residual);
  const Part mine = part(y.pixels(), vectors_of(y), x.C, kLanes, call.team);
  const bool prologue = has_prologue(a);
  const int64_t block = block_rows(x, mine.rows.end - mine.rows.begin, mine.vectors.end - mine.vectors.begin, prologue);
  const Cut cut{mine.vectors.end - mine.vectors.begin};
  const bool far = cut.vectors * x.C * kLanes > kNear;
  const int64_t pixels = x.H * x.W;
  for (int64_t row = mine.rows.begin; row < mine.rows.end;) {
    // a block lies within one image: gates differ between images, and so may the distance of their pixels
    const int64_t image = row / pixels, inside = row - image * pixels;
    const bool dense = a.gate == kNone && gapless(x) && gapless(y) && (residual == nullptr || gapless(*residual));
    const int64_t count = std::min({block, mine.rows.end - row, dense ? block : pixels - inside});
    TileInput from{x.data + image * x.image + inside * x.pixel, x.pixel, nullptr, x.C * kLanes, x.C};
    if (prologue) {
      for (int64_t done = 0; done < count;) {
        const int64_t rows = std::min(count - done, pixels - (row + done) % pixels);
        transform(call, a, row + done, rows, call.scratch + done * x.C);
        done += rows;
      }
      from.a = call.scratch, from.row = x.C;
    }
    int64_t vector = mine.vectors.begin;
    for (int64_t i = 0; i < cut.panels(); ++i) {
      const int width = cut.width(i);
      const int64_t channel = vector * kLanes, columns = std::min<int64_t>(y.C - channel, width * kLanes);
      from.b = call.weight(a.weight) + channel * x.C;
      const TileOutput to{y.at(image, 0, inside) + channel, y.pixel, a.bias == kNone ? nullptr : call.weight(a.bias) + channel,
                          residual == nullptr ? nullptr : residual->at(image, 0, inside) + channel,
                          residual == nullptr ? 0 : residual->pixel, int(columns - (width - 1) * kLanes), a.activation(), false};
      panel(from, to, count, width, far && i + 1 < cut.panels() ? cut.width(i + 1) : 0);
      vector += width;
    }
    row += count;
  }
}

int64_t scratch(const Call& call) {
  const auto& a = call.args<PointwiseArgs>();
  if (!has_prologue(a)) return 0;
  const Map &x = call.map(a.x), &y = call.map(a.y);
  return std::max(block_rows(x, y.pixels(), vectors_of(y), true), block_rows(x, y.pixels(), 1, true)) * x.C;
}

}  // namespace

extern const Kernel kPointwise;
const Kernel kPointwise{pointwise, scratch};

}  // namespace FASTCNN_ISA
}  // namespace plan
}  // namespace fastcnn
