// SPDX-License-Identifier: Apache-2.0
// The register tiles of gemm.h, one function for every height and width that a panel is cut into.
#include "gemm.h"

#include "stream.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {
namespace {

// The lines of y are asked for before the sums are computed: a store that misses waits for its line, 24 to 28 stores in
// a row wait for as many. So is, at each step, a line of the next tile's rows: the hardware follows 14 short rows badly.
#define FASTCNN_EACH(i, count) _Pragma("GCC unroll 16") for (int i = 0; i < (count); ++i)

template <typename A, int kRows, int kVectors, Ending kEnding>
__attribute__((noinline)) void gemm_tile(const Rows<A>& rows, const A* b, int64_t ldb, int64_t depth, A* c, bool add,
                                         const char* ahead, int64_t ahead_step, const Epilogue<A>& to) {
  using V = Vec<A>;
  constexpr int kLanes = V::kLanes;
  const int64_t row_stride = rows.row_stride, depth_stride = rows.depth_stride;
  if (kEnding != Ending::kPartial && !to.streams)
    FASTCNN_EACH(m, kRows) FASTCNN_EACH(v, kVectors) __builtin_prefetch(to.y + m * to.ldy + v * kLanes, 1);
  decltype(V::v) sum[kRows][kVectors], panel[kVectors];  // no constructors: their loops would keep the arrays in memory
  if (add) FASTCNN_EACH(m, kRows) FASTCNN_EACH(v, kVectors) sum[m][v] = V::load(c + (m * kVectors + v) * kLanes).v;
  else FASTCNN_EACH(m, kRows) FASTCNN_EACH(v, kVectors) sum[m][v] = V(0).v;
  for (int64_t segment = 0; segment < rows.segments; ++segment) {
    const A* a = rows.data + segment * rows.segment_stride;
    for (int64_t k = 0; k < depth; ++k) {
      __builtin_prefetch(ahead + k * ahead_step);
      FASTCNN_EACH(v, kVectors) panel[v] = V::load(b + v * kLanes).v;
      FASTCNN_EACH(m, kRows) {
        const V value(a[m * row_stride]);
        FASTCNN_EACH(v, kVectors) sum[m][v] = fma(value, V(panel[v]), V(sum[m][v])).v;
      }
      a += depth_stride;
      b += ldb;
    }
  }
  if constexpr (kEnding == Ending::kPartial) {
    FASTCNN_EACH(m, kRows) FASTCNN_EACH(v, kVectors) V(sum[m][v]).store(c + (m * kVectors + v) * kLanes);
    return;
  }
  const V low(to.low), high(to.high);
  const int lanes = int(to.columns) - (kVectors - 1) * kLanes;
  FASTCNN_EACH(v, kVectors) {
    const bool whole = v + 1 < kVectors || lanes == kLanes;
    const int n = whole ? kLanes : lanes;
    V scale(1), shift(0);
    if (kEnding == Ending::kLanes && to.scale != nullptr) scale = V::load(to.scale + v * kLanes, n);
    if (kEnding == Ending::kLanes && to.shift != nullptr) shift = V::load(to.shift + v * kLanes, n);
    FASTCNN_EACH(m, kRows) {
      if (kEnding == Ending::kRows && to.scale != nullptr) scale = V(to.scale[m]);
      if (kEnding == Ending::kRows && to.shift != nullptr) shift = V(to.shift[m]);
      A* y = to.y + m * to.ldy + v * kLanes;
      V value = fma(V(sum[m][v]), scale, shift);
      if (to.residual != nullptr) {
        const A* residual = to.residual + m * to.ldy + v * kLanes;
        value = value + (whole ? V::load(residual) : V::load(residual, n));
      }
      value = clamp(value, low, high);
      if (!whole) value.store(y, n);
      else if (to.streams) stream(value, y);
      else value.store(y);
    }
  }
}

#undef FASTCNN_EACH

template <typename A, Ending kEnding, int kVectors, int kRows = tile_rows(kVectors)>
FASTCNN_INLINE TileFunction<A> tile_with_rows(int rows) {
  if constexpr (kRows == 1) return gemm_tile<A, 1, kVectors, kEnding>;
  else return rows == kRows ? gemm_tile<A, kRows, kVectors, kEnding> : tile_with_rows<A, kEnding, kVectors, kRows - 1>(rows);
}

template <typename A, Ending kEnding> TileFunction<A> tile_with(int rows, int vectors) {
  switch (vectors) {
    case 1:
      return tile_with_rows<A, kEnding, 1>(rows);
    case 2:
      return tile_with_rows<A, kEnding, 2>(rows);
    case 3:
      return tile_with_rows<A, kEnding, 3>(rows);
    default:
      return tile_with_rows<A, kEnding, kMostVectors>(rows);
  }
}

}  // namespace

template <typename A> TileFunction<A> tile_function(int rows, int vectors, Ending ending) {
  switch (ending) {
    case Ending::kPartial:
      return tile_with<A, Ending::kPartial>(rows, vectors);
    case Ending::kLanes:
      return tile_with<A, Ending::kLanes>(rows, vectors);
    default:
      return tile_with<A, Ending::kRows>(rows, vectors);
  }
}

template TileFunction<float> tile_function<float>(int, int, Ending);
#if FASTCNN_WITH_DOUBLE
template TileFunction<double> tile_function<double>(int, int, Ending);
#endif

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
