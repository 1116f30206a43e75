// SPDX-License-Identifier: Apache-2.0
// Pooling over a window, and the mean over all pixels.
//
// A thread takes rows of outputs, kBlock vectors of channels at a time. A window of three columns shares one or two of
// them with the next: every column is reduced once, from the kernel_h rows, and its result stays in registers while the
// windows that hold it pass. Windows of other widths are reduced anew for each output.
#include <limits>

#include "kernels.h"
#include "tile.h"

namespace fastcnn {
namespace plan {
inline namespace FASTCNN_ISA {
namespace {

constexpr int kBlock = 4;  // vectors

struct Most {
  static FASTCNN_INLINE V neutral() { return V(-std::numeric_limits<float>::infinity()); }
  // a NaN on either side wins, as in PyTorch: maximum() keeps its first operand's, a select the second one's
  static FASTCNN_INLINE V join(V value, V most) { return select(most <= most, maximum(value, most), most); }
};

struct Sum {
  static FASTCNN_INLINE V neutral() { return V(0); }
  static FASTCNN_INLINE V join(V value, V sum) { return value + sum; }
};

// The windows of one dimension, cut to the map: output i sees [begin, end); `counted` of its places count for a mean.
struct Windows {
  int64_t extent, outputs, kernel, stride, pad;
  Pool kind;

  Range at(int64_t i) const {
    if (kind == Pool::kAdaptiveMean) return {i * extent / outputs, ceil_div((i + 1) * extent, outputs)};
    const int64_t first = i * stride - pad;
    return {std::max<int64_t>(first, 0), std::max<int64_t>(std::min(first + kernel, extent), 0)};
  }
  // the padding counts behind the end as well as in front, what a window has beyond it does not
  int64_t counted(int64_t i) const {
    const Range inside = at(i);
    if (kind != Pool::kMean) return std::max<int64_t>(inside.end - inside.begin, 0);
    const int64_t first = i * stride - pad;
    return std::max<int64_t>(std::min(first + kernel, extent + pad) - first, 1);
  }
};

// A row of outputs, of kVectors vectors of channels.
struct Row {
  const float* from;  // of the first row of the windows
  int64_t row, pixel, rows;
  float* to;
  int64_t to_pixel, outputs;
  int64_t counted_rows;
  Windows columns;
};

// `count` pixels that lie `step` floats apart, into what `into` holds.
template <typename R, int kVectors, typename L>
FASTCNN_INLINE void reduce(const float* from, int64_t step, int64_t count, L lanes, V (&into)[kVectors]) {
  for (int64_t i = 0; i < count; ++i, from += step)
    for (int v = 0; v < kVectors; ++v) into[v] = R::join(lanes.load(from + v * kLanes), into[v]);
}

template <typename R, int kVectors, typename L>
FASTCNN_INLINE void reduce_column(const Row& a, int64_t column, L lanes, V (&into)[kVectors]) {
  reduce<R, kVectors>(a.from + column * a.pixel, a.row, a.rows, lanes, into);
}

template <typename R, int kVectors, typename L> FASTCNN_INLINE void finish(const Row& a, int64_t ox, L lanes, const V (&found)[kVectors]) {
  const bool mean = a.columns.kind != Pool::kMax;
  const V share(mean ? 1.f / float(std::max<int64_t>(a.counted_rows * a.columns.counted(ox), 1)) : 1.f);
  for (int v = 0; v < kVectors; ++v) lanes.store(mean ? found[v] * share : found[v], a.to + ox * a.to_pixel + v * kLanes);
}

template <typename R, int kVectors, typename L> void row_of_any(const Row& a, L lanes) {
  for (int64_t ox = 0; ox < a.outputs; ++ox) {
    V found[kVectors];
    for (V& each : found) each = R::neutral();
    const Range columns = a.columns.at(ox);
    for (int64_t ix = columns.begin; ix < columns.end; ++ix) reduce_column<R, kVectors>(a, ix, lanes, found);
    finish<R, kVectors>(a, ox, lanes, found);
  }
}

// Three columns a window: `older` and `old` come from the windows before.
template <typename R, int kStride, int kVectors, typename L> void row_of_three(const Row& a, L lanes) {
  static_assert(kStride == 1 || kStride == 2, "a window shares a column with the next");
  const auto column = [&](int64_t ix, V (&into)[kVectors]) {
    for (V& each : into) each = R::neutral();
    if (ix >= 0 && ix < a.columns.extent) reduce_column<R, kVectors>(a, ix, lanes, into);
  };
  V older[kVectors], old[kVectors], last[kVectors];
  int64_t ix = -a.columns.pad;
  column(ix++, older);
  if (kStride == 1) column(ix++, old);
  for (int64_t ox = 0; ox < a.outputs; ++ox) {
    if (kStride == 2) column(ix++, old);
    column(ix++, last);
    V found[kVectors];
    for (int v = 0; v < kVectors; ++v) found[v] = R::join(last[v], R::join(old[v], older[v]));
    finish<R, kVectors>(a, ox, lanes, found);
    for (int v = 0; v < kVectors; ++v) {
      older[v] = kStride == 1 ? old[v] : last[v];
      old[v] = last[v];
    }
  }
}

template <typename R, int kVectors, typename L> void row_of(const Row& a, L lanes) {
  const bool three = a.columns.kind != Pool::kAdaptiveMean && a.columns.kernel == 3;
  if (three && a.columns.stride == 1) row_of_three<R, 1, kVectors>(a, lanes);
  else if (three && a.columns.stride == 2) row_of_three<R, 2, kVectors>(a, lanes);
  else row_of_any<R, kVectors>(a, lanes);
}

// body(first channel, tag of the number of vectors, lanes) for all of C, the block of kBlock vectors that `block` names.
template <typename F> FASTCNN_INLINE void over_block(int64_t C, int64_t block, F&& body) {
  const int64_t begin = block * kBlock * kLanes, end = std::min(C, begin + kBlock * kLanes);
  if (end - begin == kBlock * kLanes) return body(begin, std::integral_constant<int, kBlock>{}, All<V>{});
  int64_t c = begin;
  for (; c + kLanes <= end; c += kLanes) body(c, std::integral_constant<int, 1>{}, All<V>{});
  if (c < end) body(c, std::integral_constant<int, 1>{}, First<V>{int(end - c)});
}

int64_t blocks_of(int64_t C) { return ceil_div(C, kBlock * kLanes); }

void pool(const Call& call) {
  const auto& a = call.args<PoolArgs>();
  const Map &x = call.map(a.x), &y = call.map(a.y);
  const Windows rows{x.H, y.H, a.kernel_h, a.stride_h, a.pad_top, a.kind}, columns{x.W, y.W, a.kernel_w, a.stride_w, a.pad_left, a.kind};
  const int64_t blocks = blocks_of(y.C);
  const Range mine = call.team.share(y.images * y.H * blocks);
  for (int64_t item = mine.begin; item < mine.end; ++item) {
    const int64_t row = item / blocks, block = item - row * blocks, image = row / y.H, oy = row - image * y.H;
    const Range seen = rows.at(oy);
    over_block(y.C, block, [&](int64_t c, auto vectors, auto lanes) {
      constexpr int kVectors = decltype(vectors)::value;
      const Row one{x.data + image * x.image + seen.begin * x.row + c, x.row, x.pixel, std::max<int64_t>(seen.end - seen.begin, 0),
                    y.at(image, oy) + c, y.pixel, y.W, rows.counted(oy), columns};
      if (a.kind == Pool::kMax) row_of<Most, kVectors>(one, lanes);
      else row_of<Sum, kVectors>(one, lanes);
    });
  }
}

void global_pool(const Call& call) {
  const auto& a = call.args<GlobalPoolArgs>();
  const Map &x = call.map(a.x), &y = call.map(a.y);
  const int64_t blocks = blocks_of(x.C);
  const Range mine = call.team.share(x.images * blocks);
  const V share(1.f / float(x.H * x.W));
  for (int64_t item = mine.begin; item < mine.end; ++item) {
    const int64_t image = item / blocks;
    over_block(x.C, item - image * blocks, [&](int64_t c, auto vectors, auto lanes) {
      constexpr int kVectors = decltype(vectors)::value;
      V total[kVectors];
      for (int64_t iy = 0; iy < x.H; ++iy) {
        V sums[kVectors];
        reduce<Sum, kVectors>(x.at(image, iy) + c, x.pixel, x.W, lanes, sums);
        for (int v = 0; v < kVectors; ++v) total[v] = total[v] + sums[v];
      }
      for (int v = 0; v < kVectors; ++v) lanes.store(total[v] * share, y.at(image) + c + v * kLanes);
    });
  }
}

}  // namespace

extern const Kernel kPool, kGlobalPool;
const Kernel kPool{pool};
const Kernel kGlobalPool{global_pool};

}  // namespace FASTCNN_ISA
}  // namespace plan
}  // namespace fastcnn
