// SPDX-License-Identifier: Apache-2.0
// Dense and grouped k x k convolutions, the first one of a network included, as matrix products: the taps of a window are
// segments of the depth.
//
// A thread takes rows of y. The rows of x under one row of y are copied into scratch once, with zeros where the window hangs
// over the edge and channels innermost (a picture comes in any order), so that the product reads every tap at a fixed
// offset; kept from row to row in a ring, each is copied once.
#include <cstring>

#include "kernels.h"
#include "tile.h"

namespace fastcnn {
namespace plan {
inline namespace FASTCNN_ISA {
namespace {

struct Geometry {
  int64_t group, columns;  // channels of x in a group; pixels of a row in scratch
  int64_t line;            // floats of such a row
  int64_t taps;
};

Geometry geometry(const Call& call, const ConvArgs& a) {
  const Map &x = call.map(a.x), &y = call.map(a.y);
  const int64_t columns = (y.W - 1) * a.stride_w + (a.kernel_w - 1) * a.dilation_w + 1;
  return {x.C / a.groups, columns, columns * x.C, a.kernel_h * a.kernel_w};
}

// Row `at` of x as the windows see it: columns from -pad_left on, zeros outside.
void copy_row(const Map& x, int64_t image, int64_t at, const ConvArgs& a, const Geometry& g, float* out) {
  if (at < 0 || at >= x.H) {
    std::memset(out, 0, size_t(g.line) * sizeof(float));
    return;
  }
  const int64_t left = std::min(a.pad_left, g.columns), inside = std::min(x.W, g.columns - left);
  std::memset(out, 0, size_t(left * x.C) * sizeof(float));
  const float* from = x.at(image, at);
  float* to = out + left * x.C;
  if (x.channel == 1 && x.pixel == x.C) std::memcpy(to, from, size_t(inside * x.C) * sizeof(float));
  else if (x.channel == 1)
    for (int64_t i = 0; i < inside; ++i) std::memcpy(to + i * x.C, from + i * x.pixel, size_t(x.C) * sizeof(float));
  else
    for (int64_t c = 0; c < x.C; ++c)
      for (int64_t i = 0; i < inside; ++i) to[i * x.C + c] = from[i * x.pixel + c * x.channel];
  std::memset(to + inside * x.C, 0, size_t((g.columns - left - inside) * x.C) * sizeof(float));
}

void conv(const Call& call) {
  const auto& a = call.args<ConvArgs>();
  const Map &x = call.map(a.x), &y = call.map(a.y);
  const Map* residual = call.optional_map(a.residual);
  const Geometry g = geometry(call, a);
  const int64_t reach = (a.kernel_h - 1) * a.dilation_h + 1;  // rows of the ring
  float* ring = call.scratch;
  int64_t* offsets = reinterpret_cast<int64_t*>(ring + aligned(reach * g.line));
  const int64_t out_group = y.C / a.groups, vectors = ceil_div(out_group, kLanes), depth = g.taps * g.group;
  const Cut cut{vectors};
  const Range mine = call.team.share(y.images * y.H);
  int64_t image = -1, next = 0;  // next: the first row of x that is not in the ring
  for (int64_t row = mine.begin; row < mine.end; ++row) {
    const int64_t oy = row % y.H, first = oy * a.stride_h - a.pad_top;
    if (row / y.H != image) image = row / y.H, next = first;
    for (next = std::max(next, first); next < first + reach; ++next) {
      const int64_t slot = (next + a.pad_top) % reach;
      copy_row(x, image, next, a, g, ring + slot * g.line);
    }
    for (int64_t group = 0; group < a.groups; ++group) {
      for (int64_t t = 0; t < g.taps; ++t) {
        const int64_t ky = t / a.kernel_w, kx = t - ky * a.kernel_w;
        offsets[t] = (first + ky * a.dilation_h + a.pad_top) % reach * g.line + kx * a.dilation_w * x.C + group * g.group;
      }
      int64_t vector = 0;
      for (int64_t i = 0; i < cut.panels(); ++i) {
        const int width = cut.width(i);
        const int64_t inside = vector * kLanes, channel = group * out_group + inside, packed = (group * vectors + vector) * kLanes;
        const int64_t columns = std::min<int64_t>(out_group - inside, width * kLanes);
        const TileInput from{ring, a.stride_w * x.C, call.weight(a.weight) + packed * depth, depth * kLanes, g.group, g.taps, offsets};
        const TileOutput to{y.at(image, oy) + channel, y.pixel, a.bias == kNone ? nullptr : call.weight(a.bias) + packed,
                            residual == nullptr ? nullptr : residual->at(image, oy) + channel, residual == nullptr ? 0 : residual->pixel,
                            int(columns - (width - 1) * kLanes), a.activation(), false};
        panel(from, to, y.W, width);
        vector += width;
      }
    }
  }
}

int64_t scratch(const Call& call) {
  const auto& a = call.args<ConvArgs>();
  const Geometry g = geometry(call, a);
  const int64_t reach = (a.kernel_h - 1) * a.dilation_h + 1;
  return aligned(reach * g.line) + g.taps * int64_t(sizeof(int64_t) / sizeof(float));
}

}  // namespace

extern const Kernel kConv;
const Kernel kConv{conv, scratch};

}  // namespace FASTCNN_ISA
}  // namespace plan
}  // namespace fastcnn
