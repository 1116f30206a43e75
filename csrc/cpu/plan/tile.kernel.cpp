// SPDX-License-Identifier: Apache-2.0
#include "tile.h"

namespace fastcnn {
namespace plan {
inline namespace FASTCNN_ISA {
namespace {

#define FASTCNN_EACH(i, count) _Pragma("GCC unroll 16") for (int i = 0; i < (count); ++i)

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
  const float* b = from.b;
  for (int64_t segment = 0; segment < from.segments; ++segment) {
    const float* a = from.offsets == nullptr ? from.a : from.a + from.offsets[segment];
    for (int64_t k = 0; k < from.depth; ++k) {
      FASTCNN_EACH(v, NV) weight[v] = V::load(b + v * vector).v;
      FASTCNN_EACH(m, R) {
        const V value(a[m * row]);
        FASTCNN_EACH(v, NV) sum[m][v] = fma(value, V(weight[v]), V(sum[m][v])).v;
      }
      ++a;
      b += kLanes;
    }
  }
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
