// SPDX-License-Identifier: Apache-2.0
#include "tile.h"

namespace fastcnn {
namespace plan {
inline namespace FASTCNN_ISA {
namespace {

#define FASTCNN_EACH(i, count) _Pragma("GCC unroll 16") for (int i = 0; i < (count); ++i)

// A pointer to every fourth row, and distances of 1, 2 and 3 rows: the compiler would take one pointer and R distances,
// more than there are registers.
#if defined(__GNUC__)
#define FASTCNN_OPAQUE(pointer) asm("" : "+r"(pointer))
#else
#define FASTCNN_OPAQUE(pointer) (void)0
#endif

template <int R, int NV>
__attribute__((noinline)) void tile_of(const TileInput& from, const TileOutput& to) {
  decltype(V::v) sum[R][NV], weight[NV];  // no constructors: their loops would keep the arrays in memory
  FASTCNN_EACH(m, R) FASTCNN_EACH(v, NV) {
    const bool whole = v + 1 < NV || to.last == kLanes;
    const float* y = to.y + m * to.row + v * kLanes;
    if (to.adds) sum[m][v] = (whole ? V::load(y) : V::load(y, to.last)).v;
    else sum[m][v] = (to.bias != nullptr ? V::load(to.bias + v * kLanes) : V(0)).v;
  }
  const int64_t row = from.row, vector = from.vector;
  const float *b = from.b, *ahead = from.ahead;
  const auto multiply = [&](auto prefetches) __attribute__((always_inline)) {
    for (int64_t segment = 0; segment < from.segments; ++segment) {
      const float* a[(R + 3) / 4];
      a[0] = from.offsets == nullptr ? from.a : from.a + from.offsets[segment];
      FASTCNN_EACH(i, (R - 1) / 4) {
        a[i + 1] = a[i] + 4 * row;
        FASTCNN_OPAQUE(a[i + 1]);
      }
      for (int64_t k = 0; k < from.depth; ++k) {
        FASTCNN_EACH(v, NV) weight[v] = V::load(b + v * vector).v;
        FASTCNN_EACH(m, R) {
          const V value(a[m / 4][m % 4 * row]);
          FASTCNN_EACH(v, NV) sum[m][v] = fma(value, V(weight[v]), V(sum[m][v])).v;
        }
        FASTCNN_EACH(i, (R + 3) / 4) ++a[i];
        b += kLanes;
        if constexpr (prefetches) __builtin_prefetch(ahead, 0, 2), ahead += kLanes;
      }
    }
  };
  if (ahead != nullptr) multiply(std::true_type());
  else multiply(std::false_type());
  if (to.residual != nullptr)
    FASTCNN_EACH(m, R) FASTCNN_EACH(v, NV) {
      const float* residual = to.residual + m * to.residual_row + v * kLanes;
      sum[m][v] = (V(sum[m][v]) + (v + 1 < NV || to.last == kLanes ? V::load(residual) : V::load(residual, to.last))).v;
    }
  if (to.activation == Activation::kRelu) FASTCNN_EACH(m, R) FASTCNN_EACH(v, NV) sum[m][v] = Relu()(V(sum[m][v])).v;
  else if (to.activation == Activation::kRelu6) FASTCNN_EACH(m, R) FASTCNN_EACH(v, NV) sum[m][v] = Relu6()(V(sum[m][v])).v;
  else if (to.activation == Activation::kHardSwish) FASTCNN_EACH(m, R) FASTCNN_EACH(v, NV) sum[m][v] = HardSwish()(V(sum[m][v])).v;
  FASTCNN_EACH(m, R) FASTCNN_EACH(v, NV) {
    float* y = to.y + m * to.row + v * kLanes;
    if (v + 1 < NV || to.last == kLanes) V(sum[m][v]).store(y);
    else V(sum[m][v]).store(y, to.last);
  }
  if (!in_registers(to.activation)) activate_rows(to.activation, to.y, to.row, R, (NV - 1) * kLanes + to.last);
}

#undef FASTCNN_EACH
#undef FASTCNN_OPAQUE

template <int NV, int R = rows_of(NV)> Tile with_rows(int rows) {
  if constexpr (R == 1) return tile_of<1, NV>;
  else return rows == R ? tile_of<R, NV> : with_rows<NV, R - 1>(rows);
}

}  // namespace

Tile tile(int rows, int vectors) { return vectors == 1 ? with_rows<1>(rows) : vectors == 2 ? with_rows<2>(rows) : with_rows<3>(rows); }

void activate_rows(Activation kind, float* y, int64_t row, int64_t rows, int64_t count) {
  dispatch_activation(kind, [&](auto functor) {
    for (int64_t m = 0; m < rows; ++m)
      over_lanes<V>(count, [&](int64_t i, auto lanes) { lanes.store(functor(lanes.load(y + m * row + i)), y + m * row + i); });
  });
}

}  // namespace FASTCNN_ISA
}  // namespace plan
}  // namespace fastcnn
