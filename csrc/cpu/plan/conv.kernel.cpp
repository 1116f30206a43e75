// SPDX-License-Identifier: Apache-2.0
// Dense and grouped k x k convolutions, the first one of a network included, as products of windows by packed weights: the
// tile of tile.h, in two ways.
//
// By rows of y, where the weights stay in L2: the rows of x under one row of y are copied into scratch once, with zeros where
// the window hangs over the edge and channels innermost (a picture comes in any order), and kept from row to row in a ring.
// The tile reads a window where it lies: a segment of the depth is a row of it, or a tap where groups or dilation part them.
//
// By blocks of pixels, where the weights are too many: windows are written out side by side, [pixels][part of the depth],
// whatever row or image they come from. Small maps fill tiles of full height so, and weights that come from the L3 cache
// serve a whole block: 196 pixels by 800 floats are 640 KB of L2, beside the 100 KB of a panel's weights. What copying costs
// is 3 / O of the product. A part of the depth adds to the sums that the part before left in y.
#include <cstring>

#include "kernels.h"
#include "share.h"
#include "tile.h"

namespace fastcnn {
namespace plan {
inline namespace FASTCNN_ISA {
namespace {

constexpr int64_t kResident = 1024 * 1024 / int64_t(sizeof(float));  // of weights: stays in L2 beside a ring
constexpr int64_t kBlock = 640 * 1024 / int64_t(sizeof(float));      // of windows
constexpr int64_t kMostPixels = 196;
constexpr int64_t kFewChannels = 128;  // copying windows would cost more than 2 %

struct Geometry {
  int64_t group, out_group;        // channels of x and y in a group
  int64_t taps, depth;             // of a window
  int64_t vectors;                 // of output channels in a group
  int64_t columns, line, reach;    // of the ring: pixels and floats of a row, rows
  int64_t segments, segment;       // of a window in the ring; floats of one
};

Geometry geometry(const Map& x, const Map& y, const ConvArgs& a) {
  Geometry g;
  g.group = x.C / a.groups, g.out_group = y.C / a.groups;
  g.taps = a.kernel_h * a.kernel_w, g.depth = g.taps * g.group;
  g.vectors = ceil_div(g.out_group, kLanes);
  g.columns = (y.W - 1) * a.stride_w + (a.kernel_w - 1) * a.dilation_w + 1, g.line = g.columns * x.C;
  g.reach = (a.kernel_h - 1) * a.dilation_h + 1;
  const bool joined = a.groups == 1 && a.dilation_w == 1;
  g.segments = joined ? a.kernel_h : g.taps, g.segment = g.depth / g.segments;
  return g;
}

bool by_blocks(const Map& x, const Map& y, const ConvArgs& a, const Geometry& g) {
  if (x.channel != 1) return false;
  return g.taps == 1 || (g.out_group >= kFewChannels && y.C * g.depth > kResident);
}

struct Operands {
  const Call& call;
  const ConvArgs& a;
  const Map &x, &y;
  const Map* residual;
  Geometry g;
};

// Vectors [begin, end) of all groups' as ranges within a group: body(group, vectors).
template <typename F> void each_group(const Geometry& g, Range vectors, F&& body) {
  for (int64_t at = vectors.begin; at < vectors.end;) {
    const int64_t group = at / g.vectors, end = std::min(vectors.end, (group + 1) * g.vectors);
    body(group, Range{at - group * g.vectors, end - group * g.vectors});
    at = end;
  }
}

// Rows of windows against vectors of a group; `done`: the depth that y holds already, of `count` more. The rows are pixels of y
// one behind another from `image`, `pixel` on.
void product(const Operands& o, TileInput from, int64_t image, int64_t pixel, int64_t rows, int64_t group, Range vectors, int64_t done,
             int64_t count) {
  const Geometry& g = o.g;
  const bool last = done + count == g.depth;
  const Map* residual = last ? o.residual : nullptr;
  const Cut cut{vectors.end - vectors.begin};
  int64_t vector = vectors.begin;
  for (int64_t i = 0; i < cut.panels(); ++i) {
    const int width = cut.width(i);
    const int64_t inside = vector * kLanes, channel = group * g.out_group + inside, packed = (group * g.vectors + vector) * kLanes;
    const int64_t columns = std::min<int64_t>(g.out_group - inside, width * kLanes);
    from.b = o.call.weight(o.a.weight) + packed * g.depth + done * kLanes, from.vector = g.depth * kLanes;
    const TileOutput to{o.y.at(image, 0, pixel) + channel, o.y.pixel, o.a.bias == kNone ? nullptr : o.call.weight(o.a.bias) + packed,
                        residual == nullptr ? nullptr : residual->at(image, 0, pixel) + channel, residual == nullptr ? 0 : residual->pixel,
                        int(columns - (width - 1) * kLanes), last ? o.a.activation() : Activation::kIdentity, done > 0};
    vector += width;
    panel(from, to, rows, width, i + 1 < cut.panels() ? cut.width(i + 1) : 0);
  }
}

// Three planes of a picture: the compiler makes shuffles of it.
void interleave(const float* __restrict red, const float* __restrict green, const float* __restrict blue, int64_t count,
                float* __restrict to) {
  for (int64_t i = 0; i < count; ++i) to[3 * i] = red[i], to[3 * i + 1] = green[i], to[3 * i + 2] = blue[i];
}

// Row `at` of x as the windows see it: columns from -pad_left on, zeros outside.
void copy_row(const Operands& o, int64_t image, int64_t at, float* out) {
  const Map& x = o.x;
  const Geometry& g = o.g;
  if (at < 0 || at >= x.H) {
    std::memset(out, 0, size_t(g.line) * sizeof(float));
    return;
  }
  const int64_t left = std::min(o.a.pad_left, g.columns), inside = std::min(x.W, g.columns - left);
  std::memset(out, 0, size_t(left * x.C) * sizeof(float));
  const float* from = x.at(image, at);
  float* to = out + left * x.C;
  if (x.channel == 1 && x.pixel == x.C) std::memcpy(to, from, size_t(inside * x.C) * sizeof(float));
  else if (x.channel == 1)
    for (int64_t i = 0; i < inside; ++i) std::memcpy(to + i * x.C, from + i * x.pixel, size_t(x.C) * sizeof(float));
  else if (x.C == 3 && x.pixel == 1)
    interleave(from, from + x.channel, from + 2 * x.channel, inside, to);
  else
    for (int64_t c = 0; c < x.C; ++c)
      for (int64_t i = 0; i < inside; ++i) to[i * x.C + c] = from[i * x.pixel + c * x.channel];
  std::memset(to + inside * x.C, 0, size_t((g.columns - left - inside) * x.C) * sizeof(float));
}

void rows(const Operands& o) {
  const ConvArgs& a = o.a;
  const Geometry& g = o.g;
  const Map &x = o.x, &y = o.y;
  float* ring = o.call.scratch;
  int64_t* offsets = reinterpret_cast<int64_t*>(ring + aligned(g.reach * g.line));
  const Part mine = part(y.images * y.H, a.groups * g.vectors, g.depth * y.W, kLanes, o.call.team);
  int64_t image = -1, next = 0;  // next: the first row of x that is not in the ring
  for (int64_t row = mine.rows.begin; row < mine.rows.end; ++row) {
    const int64_t oy = row % y.H, first = oy * a.stride_h - a.pad_top;
    if (row / y.H != image) image = row / y.H, next = first;
    for (next = std::max(next, first); next < first + g.reach; ++next)
      copy_row(o, image, next, ring + (next + a.pad_top) % g.reach * g.line);
    each_group(g, mine.vectors, [&](int64_t group, Range vectors) {
      for (int64_t s = 0; s < g.segments; ++s) {
        const int64_t tap = s * g.segment / g.group, ky = tap / a.kernel_w, kx = tap - ky * a.kernel_w;
        offsets[s] = (first + ky * a.dilation_h + a.pad_top) % g.reach * g.line + kx * a.dilation_w * x.C + group * g.group;
      }
      const TileInput from{ring, a.stride_w * x.C, nullptr, 0, g.segment, g.segments, offsets};
      product(o, from, image, oy * y.W, y.W, group, vectors, 0, g.depth);
    });
  }
}

// Windows of a block lie `row` floats apart, and hold `depth` floats at most.
struct Block {
  int64_t pixels, depth, row;
};

// The same for every thread of a team.
Block block(const Map& y, const Geometry& g, const Team& team) {
  const Part all = part(y.pixels(), y.C / g.out_group * g.vectors, g.depth, kLanes, Team{0, team.size, nullptr});
  const bool shares_rows = all.vectors.end - all.vectors.begin == y.C / g.out_group * g.vectors;
  const int64_t most = shares_rows ? ceil_div(y.pixels(), team.size) : y.pixels();
  const int64_t pixels = ceil_div(most, ceil_div(most, kMostPixels));
  const int64_t parts = ceil_div(g.depth * pixels, kBlock);
  const int64_t depth = ceil_div(ceil_div(g.depth, parts), kAlignment) * kAlignment;
  // rows a multiple of 2 KB apart would share few sets of L1
  return {pixels, depth, depth % 512 == 0 ? depth + kAlignment : depth};
}

// Depth [begin, end) of the windows of `count` pixels of y, from number `first` of all images' on.
void copy_windows(const Operands& o, int64_t first, int64_t count, int64_t group, int64_t begin, int64_t end, float* out, int64_t row) {
  const ConvArgs& a = o.a;
  const Map &x = o.x, &y = o.y;
  for (int64_t at = begin; at < end;) {
    const int64_t tap = at / o.g.group, channel = at - tap * o.g.group, floats = std::min(o.g.group - channel, end - at);
    const int64_t ky = tap / a.kernel_w, down = ky * a.dilation_h - a.pad_top, right = (tap - ky * a.kernel_w) * a.dilation_w - a.pad_left;
    int64_t image = first / (y.H * y.W), oy = (first - image * y.H * y.W) / y.W, ox = first % y.W;
    float* to = out + at - begin;
    for (int64_t i = 0; i < count; ++i, to += row) {
      const int64_t iy = oy * a.stride_h + down, ix = ox * a.stride_w + right;
      const bool inside = iy >= 0 && iy < x.H && ix >= 0 && ix < x.W;
      if (inside) std::memcpy(to, x.at(image, iy, ix) + group * o.g.group + channel, size_t(floats) * sizeof(float));
      else std::memset(to, 0, size_t(floats) * sizeof(float));
      if (++ox < y.W) continue;
      ox = 0;
      if (++oy == y.H) oy = 0, ++image;
    }
    at += floats;
  }
}

void blocks(const Operands& o) {
  const Geometry& g = o.g;
  const Map& y = o.y;
  const int64_t pixels = y.H * y.W;
  const Block b = block(y, g, o.call.team);
  const Part mine = part(y.pixels(), o.a.groups * g.vectors, g.depth, kLanes, o.call.team);
  for (int64_t first = mine.rows.begin; first < mine.rows.end;) {
    // images may lie apart
    const bool dense = y.image == pixels * y.pixel && (o.residual == nullptr || o.residual->image == pixels * o.residual->pixel);
    const int64_t image = first / pixels, inside = first - image * pixels;
    const int64_t count = std::min({b.pixels, mine.rows.end - first, dense ? b.pixels : pixels - inside});
    each_group(g, mine.vectors, [&](int64_t group, Range vectors) {
      for (int64_t done = 0; done < g.depth; done += b.depth) {
        const int64_t floats = std::min(b.depth, g.depth - done);
        copy_windows(o, first, count, group, done, done + floats, o.call.scratch, b.row);
        product(o, {o.call.scratch, b.row, nullptr, 0, floats}, image, inside, count, group, vectors, done, floats);
      }
    });
    first += count;
  }
}

void conv(const Call& call) {
  const auto& a = call.args<ConvArgs>();
  const Map &x = call.map(a.x), &y = call.map(a.y);
  const Operands o{call, a, x, y, call.optional_map(a.residual), geometry(x, y, a)};
  if (by_blocks(x, y, a, o.g)) blocks(o);
  else rows(o);
}

int64_t scratch(const Call& call) {
  const auto& a = call.args<ConvArgs>();
  const Map &x = call.map(a.x), &y = call.map(a.y);
  const Geometry g = geometry(x, y, a);
  if (by_blocks(x, y, a, g)) {
    const Block b = block(y, g, call.team);
    return b.pixels * b.row;
  }
  return aligned(g.reach * g.line) + g.segments * int64_t(sizeof(int64_t) / sizeof(float));
}

}  // namespace

extern const Kernel kConv;
const Kernel kConv{conv, scratch};

}  // namespace FASTCNN_ISA
}  // namespace plan
}  // namespace fastcnn
