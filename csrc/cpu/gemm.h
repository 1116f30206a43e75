// SPDX-License-Identifier: Apache-2.0
// The packed matrix product behind every 1x1 convolution: c[m][n] = sum_k a[m][k] b[k][n].
//
// b is the vector operand: panels of `vectors` hardware vectors, row k at b + k * ldb. a is the broadcast operand, read
// where it lies, with any two strides. A channels_last convolution broadcasts pixels over packed weights, an NCHW one
// broadcasts weights over pixels; neither changes the layout of an activation.
//
// A tile of rows x vectors accumulators stays in registers while k runs. AVX-512 (32 registers) holds 14x2,
// 8x3 or 6x4: 28 or 24 independent FMAs cover the latency of two ports (8) and leave registers for the panel row and
// one broadcast. AVX2 and SSE (16) hold 6x2 or 4x3. A panel slice of kSliceBytes stays in L1 while every tile of rows
// runs over it; sums over several slices pass through `partial`. The last slice ends in the caller's epilogue, from
// registers where it is a clamp. Packing and computing are separate, so that a caller may keep packed weights.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#include "../common/shape.h"
#include "parallel.h"
#include "simd.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {

constexpr int64_t kSliceBytes = 32 * 1024;  // of a panel, kept in L1

constexpr int64_t kLine = 64;  // bytes of a cache line

// Uninitialised memory for one kernel call of one thread, cut into aligned pieces. Up to kKept bytes stay with the
// thread from call to call: fresh pages for the packed weights of a late layer cost more than its arithmetic.
class Workspace {
 public:
  template <typename A> static constexpr int64_t bytes(int64_t count) {
    return (count * int64_t(sizeof(A)) + kLine - 1) / kLine * kLine;
  }

  explicit Workspace(int64_t size) : own_(nullptr) {
    static thread_local Block kept;
    if (size > kKept) {
      next_ = own_ = allocate(size);
    } else {
      if (size > kept.size) {
        std::free(kept.memory);
        kept.memory = nullptr, kept.size = 0;
        kept.memory = allocate(size), kept.size = size;
      }
      next_ = kept.memory;
    }
  }
  ~Workspace() { std::free(own_); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  template <typename A> A* take(int64_t count) {
    A* piece = reinterpret_cast<A*>(next_);
    next_ += bytes<A>(count);
    return piece;
  }

 private:
  static constexpr int64_t kKept = 8 << 20;
  struct Block {
    char* memory = nullptr;
    int64_t size = 0;
    ~Block() { std::free(memory); }
  };
  static char* allocate(int64_t size) {
    void* memory = std::aligned_alloc(kLine, size_t(size > 0 ? size : kLine));
    if (memory == nullptr) throw std::bad_alloc();
    return static_cast<char*>(memory);
  }
  char* own_;
  char* next_;
};

#if defined(__AVX512F__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

constexpr int kUsualVectors = kRegisters == 32 ? 3 : 2;  // of a panel, where there are enough
constexpr int kMostVectors = kUsualVectors + 1;          // takes in a single vector that would be left over
constexpr int kMostRows = kRegisters == 32 ? 14 : 8;

constexpr int tile_rows(int vectors) {
  if (kRegisters == 32) return vectors <= 2 ? 14 : vectors == 3 ? 8 : 6;
  return vectors == 1 ? 8 : vectors == 2 ? 6 : 4;
}

constexpr bool tile_fits(int vectors) {
  return tile_rows(vectors) * vectors + vectors + 1 <= kRegisters && tile_rows(vectors) <= kMostRows;
}
static_assert(tile_fits(1) && tile_fits(2) && tile_fits(kUsualVectors) && tile_fits(kMostVectors),
              "accumulators, panel row, one broadcast");

// How `vectors` are cut into panels: kUsual each, the last one with what is left, never a single vector where it can
// join its neighbour.
struct Panels {
  int64_t vectors, count;
  FASTCNN_INLINE explicit Panels(int64_t vectors_) : vectors(vectors_), count(ceil_div(vectors_, kUsualVectors)) {
    if (count > 1 && vectors % kUsualVectors == 1) --count;
  }
  FASTCNN_INLINE int64_t begin(int64_t panel) const { return panel * kUsualVectors; }
  FASTCNN_INLINE int width(int64_t panel) const {
    return int((panel + 1 == count ? vectors : begin(panel + 1)) - begin(panel));
  }
};

// The broadcast operand: value (m, k) lies at data + m * row_stride + k * depth_stride. Depth may come in segments, runs
// of values segment_stride apart: the rows of a patch of a channels_last image.
template <typename A> struct Rows {
  const A* data;
  int64_t row_stride, depth_stride = 1;
  int64_t segments = 1, segment_stride = 0;
};

// What a tile does with its sums: y[m][:] = clamp(c * scale + shift + residual, low, high), rows ldy apart.
enum class Ending { kPartial, kLanes, kRows };  // nothing: sums stay in c | scale and shift run along the lanes | the rows
template <typename A> struct Epilogue {
  Ending ending = Ending::kPartial;
  const A* scale = nullptr;  // null: 1
  const A* shift = nullptr;  // null: 0
  const A* residual = nullptr;
  A* y = nullptr;
  int64_t ldy = 0, columns = 0;  // columns: valid ones of the panel
  A low = 0, high = 0;
  bool streams = false;  // see stream.h
};

// One tile: c[m][:] = (or +=, with add) the sum over `depth` values of each segment; c is dense, `vectors` vectors a
// row. Then the epilogue, from registers. The tile asks for a line from `ahead` on, ahead_step further at each step.
// Compiled in gemm.kernel.cpp.
template <typename A>
using TileFunction = void (*)(const Rows<A>& a, const A* b, int64_t ldb, int64_t depth, A* c, bool add,
                              const char* ahead, int64_t ahead_step, const Epilogue<A>& to);

template <typename A> TileFunction<A> tile_function(int rows, int vectors, Ending ending);

template <typename A> FASTCNN_INLINE int64_t depth_slices(int vectors, int64_t depth) {
  const int64_t most = kSliceBytes / int64_t(sizeof(A)) / (vectors * Vec<A>::kLanes);
  return depth > most + most / 2 ? ceil_div(depth, most) : 1;
}

// Values that gemm_panel needs at `partial`, for panels of any width: one tile, or all rows where depth is sliced.
template <typename A> FASTCNN_INLINE int64_t partial_size(int64_t rows, int64_t depth) {
  const bool sliced = depth_slices<A>(kMostVectors, depth) > 1;
  return (sliced && rows > kMostRows ? rows : kMostRows) * kMostVectors * Vec<A>::kLanes;
}

// rows x one panel; `depth` values a segment. With an epilogue the results are written; without, finish(tile,
// first_row, rows) receives each complete tile, dense, once.
template <typename A, typename Finish>
FASTCNN_INLINE void gemm_panel(const Rows<A>& a, int64_t rows, const A* b, int64_t ldb, int vectors, int64_t depth,
                               A* partial, const Epilogue<A>& to, Finish&& finish) {
  const int64_t tiles = ceil_div(rows, tile_rows(vectors));
  const int64_t slices = a.segments > 1 ? 1 : depth_slices<A>(vectors, depth);
  const int64_t width = vectors * Vec<A>::kLanes;
  const int64_t smallest = tiles == 0 ? 0 : rows / tiles;  // tiles are of this height or one more
  Rows<A> from = a;
  Epilogue<A> here = to;
  for (int64_t slice = 0; slice < slices; ++slice) {
    const int64_t k = depth * slice / slices;
    const int64_t part = depth * (slice + 1) / slices - k;
    const bool dense = a.row_stride == part, last = slice + 1 == slices;
    const Ending ending = last ? to.ending : Ending::kPartial;
    const TileFunction<A> usual = tile_function<A>(int(smallest), vectors, ending);
    const TileFunction<A> higher =
        rows > smallest * tiles ? tile_function<A>(int(smallest) + 1, vectors, ending) : usual;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t row = rows * tile / tiles;
      const int64_t height = rows * (tile + 1) / tiles - row;
      A* c = slices == 1 ? partial : partial + row * width;
      from.data = a.data + row * a.row_stride + k * a.depth_stride;
      if (ending != Ending::kPartial) {
        here.y = to.y + row * to.ldy;
        if (to.residual != nullptr) here.residual = to.residual + row * to.ldy;
        if (ending == Ending::kRows && to.scale != nullptr) here.scale = to.scale + row;
        if (ending == Ending::kRows && to.shift != nullptr) here.shift = to.shift + row;
      }
      const A* ahead = dense ? from.data + height * a.row_stride : from.data;
      (height == smallest ? usual : higher)(from, b + k * ldb, ldb, part, c, slice > 0,
                                            reinterpret_cast<const char*>(ahead), dense ? kLine : 0, here);
      if (last && ending == Ending::kPartial) finish(c, row, height);
    }
  }
}

// Threads share a product as a grid of rows and vectors; no sum is ever split between them.
struct GemmSplit {
  int64_t rows, vectors;
};

FASTCNN_INLINE int64_t useful_threads(int64_t products) {
  constexpr int64_t kSerial = 1 << 18;  // below as many multiply-adds a fork costs more than it saves
  return products < kSerial ? 1 : thread_count();
}

// A vector costs, per unit of depth, half a cycle for each row it meets, and `packing` cycles.
inline GemmSplit choose_split(int64_t rows, int64_t vectors, double packing, int64_t threads) {
  GemmSplit best{1, 1};
  double best_cost = -1;
  for (int64_t by_rows = 1; by_rows <= threads; ++by_rows) {
    const int64_t by_vectors = threads / by_rows;
    const double cost = double(ceil_div(vectors, by_vectors)) * (0.5 * double(ceil_div(rows, by_rows)) + packing);
    if (best_cost < 0 || cost < best_cost) best = {by_rows, by_vectors}, best_cost = cost;
  }
  return best;
}

#if defined(__AVX2__)
// Four columns of kLanes rows, transposed: out[j] holds column j. Row r sits at rows[r]; 128-bit loads go straight to
// their lane, so that two rounds of shuffles inside the lanes are left.
FASTCNN_INLINE void transpose_four_columns(const float* const* rows, int64_t k, float* out, int64_t ld) {
#if defined(__AVX512F__)
  __m512 quad[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    __m512 q = _mm512_castps128_ps512(_mm_loadu_ps(rows[i] + k));
    q = _mm512_insertf32x4(q, _mm_loadu_ps(rows[4 + i] + k), 1);
    q = _mm512_insertf32x4(q, _mm_loadu_ps(rows[8 + i] + k), 2);
    quad[i] = _mm512_insertf32x4(q, _mm_loadu_ps(rows[12 + i] + k), 3);
  }
  const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(quad[0], quad[1])),
                low23 = _mm512_castps_pd(_mm512_unpacklo_ps(quad[2], quad[3]));
  const __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(quad[0], quad[1])),
                high23 = _mm512_castps_pd(_mm512_unpackhi_ps(quad[2], quad[3]));
  _mm512_storeu_ps(out, _mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23)));
  _mm512_storeu_ps(out + ld, _mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23)));
  _mm512_storeu_ps(out + 2 * ld, _mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23)));
  _mm512_storeu_ps(out + 3 * ld, _mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23)));
#else
  __m256 quad[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
    quad[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(rows[i] + k)), _mm_loadu_ps(rows[4 + i] + k), 1);
  const __m256d low01 = _mm256_castps_pd(_mm256_unpacklo_ps(quad[0], quad[1])),
                low23 = _mm256_castps_pd(_mm256_unpacklo_ps(quad[2], quad[3]));
  const __m256d high01 = _mm256_castps_pd(_mm256_unpackhi_ps(quad[0], quad[1])),
                high23 = _mm256_castps_pd(_mm256_unpackhi_ps(quad[2], quad[3]));
  _mm256_storeu_ps(out, _mm256_castpd_ps(_mm256_unpacklo_pd(low01, low23)));
  _mm256_storeu_ps(out + ld, _mm256_castpd_ps(_mm256_unpackhi_pd(low01, low23)));
  _mm256_storeu_ps(out + 2 * ld, _mm256_castpd_ps(_mm256_unpacklo_pd(high01, high23)));
  _mm256_storeu_ps(out + 3 * ld, _mm256_castpd_ps(_mm256_unpackhi_pd(high01, high23)));
#endif
}
#endif

// One vector of b out of kLanes rows of a row-major matrix: out[k * ld + r] = source[r * stride + k] for r < rows. The
// lanes past `rows` repeat the last row: what they compute is never stored.
template <typename S, typename A>
void pack_transposed_vector(const S* source, int64_t stride, int rows, int64_t depth, A* out, int64_t ld) {
  constexpr int kLanes = Vec<A>::kLanes;
  const S* row[kLanes];
  for (int r = 0; r < kLanes; ++r) row[r] = source + (r < rows ? r : rows - 1) * stride;
  int64_t k = 0;
#if defined(__AVX2__)
  if constexpr (sizeof(S) == 4)
    for (; k + 4 <= depth; k += 4) transpose_four_columns(row, k, out + k * ld, ld);
#endif
  for (; k < depth; ++k)
    for (int r = 0; r < kLanes; ++r) out[k * ld + r] = to_accumulator(row[r][k]);
}

// One panel, [depth][vectors], from rows of a row-major matrix with stride: the weights of a channels_last convolution.
template <typename S, typename A>
void pack_transposed(const S* source, int64_t stride, int64_t columns, int vectors, int64_t depth, A* out) {
  constexpr int kLanes = Vec<A>::kLanes;
  for (int v = 0; v < vectors; ++v) {
    const int64_t left = columns - v * kLanes;
    pack_transposed_vector(source + v * kLanes * stride, stride, int(left < kLanes ? left : kLanes), depth,
                           out + v * kLanes, int64_t(vectors * kLanes));
  }
}

// One panel from rows that already run along the vectors: out[k][0..columns) = source[k * stride + ...], zeros to the end
// of the last vector. The next panel's part of each row is asked for: rows are pages apart, where the hardware does not
// look ahead.
template <typename S, typename A>
void pack_rows(const S* source, int64_t stride, int64_t columns, int vectors, int64_t depth, A* out) {
  using V = Vec<A>;
  const int full = int(columns / V::kLanes);
  const int rest = int(columns % V::kLanes);
  for (int64_t k = 0; k < depth; ++k) {
    const S* row = source + k * stride;
    A* line = out + k * vectors * V::kLanes;
    for (int64_t byte = 0; byte < vectors * V::kLanes * int64_t(sizeof(S)); byte += kLine)
      __builtin_prefetch(reinterpret_cast<const char*>(row + vectors * V::kLanes) + byte, 0, 2);
    for (int v = 0; v < full; ++v) V::load(row + v * V::kLanes).store(line + v * V::kLanes);
    if (rest > 0) V::load(row + full * V::kLanes, rest).store(line + full * V::kLanes);
  }
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
