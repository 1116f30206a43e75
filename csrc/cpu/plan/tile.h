// SPDX-License-Identifier: Apache-2.0
// The register tile behind every matrix product of a plan: R rows of a against NV vectors of packed weights.
//
// Weights lie vector by vector, [vector][depth][lanes]: one packing serves panels of any width, cut for any number of
// threads. a is read where it lies, R rows `row` floats apart; its depth may come in segments of `depth` floats, at the
// offsets that a convolution's taps have. 14 x 2 sums fill the 32 registers of AVX-512 with one broadcast and the two
// vectors of weights: 28 FMAs cover the latency of two ports, and a step asks for 128 bytes of weights every 14 cycles,
// which the L2 cache delivers. AVX2 and SSE have 16: 6 x 2.
//
// The tile ends in bias, residual and a clamp or h-swish from registers; the activations with an exponential follow in
// memory, on lines that are in L1.
#pragma once

#include "../lanes.h"
#include "../../common/dispatch.h"
#include "../../common/shape.h"

namespace fastcnn {
namespace plan {
inline namespace FASTCNN_ISA {

using V = VecF;
constexpr int kLanes = V::kLanes;

#if defined(__AVX512F__)
constexpr int kRegisters = 32;
constexpr int kMostRows = 14;
constexpr int kRowsOfThree = 8;
#else
constexpr int kRegisters = 16;
constexpr int kMostRows = 6;
constexpr int kRowsOfThree = 4;
#endif
constexpr int rows_of(int vectors) { return vectors <= 2 ? kMostRows : kRowsOfThree; }
static_assert(kMostRows * 2 + 2 + 1 <= kRegisters && kRowsOfThree * 3 + 3 + 1 <= kRegisters, "sums, weights, one broadcast");

struct TileInput {
  const float* a;
  int64_t row;
  const float* b;
  int64_t vector;  // floats from one vector of weights to the next
  int64_t depth;   // of one segment
  int64_t segments = 1;
  const int64_t* offsets = nullptr;  // of each segment in a; nullptr: one at 0
  const float* ahead = nullptr;      // weights to come, a line for each step of the depth: on their way into L2
};

struct TileOutput {
  float* y;
  int64_t row;
  const float* bias;      // to the end of the last vector, or nullptr
  const float* residual;  // or nullptr
  int64_t residual_row;
  int last;  // lanes of the last vector
  Activation activation;
  bool adds;  // to what y holds: another part of the depth came before
};

using Tile = void (*)(const TileInput&, const TileOutput&);

// The tile of up to rows_of(vectors) rows and 1 to 3 vectors; compiled in tile.kernel.cpp.
Tile tile(int rows, int vectors);

// The activations that do not end in registers, over `count` floats of each of `rows` rows.
void activate_rows(Activation kind, float* y, int64_t row, int64_t rows, int64_t count);

constexpr bool in_registers(Activation kind) {
  return kind == Activation::kIdentity || kind == Activation::kRelu || kind == Activation::kRelu6 || kind == Activation::kHardSwish;
}

// Rows [0, rows) against vectors [0, vectors), in tiles of nearly equal height. The first tiles bring the `coming` vectors of
// weights behind these into L2, one each: beyond it a thread gets them slower than a tile wants them.
inline void panel(const TileInput& from, const TileOutput& to, int64_t rows, int vectors, int coming = 0) {
  const int64_t tiles = ceil_div(rows, rows_of(vectors));
  if (tiles == 0) return;
  const int64_t low = rows / tiles;
  const Tile usual = tile(int(low), vectors), taller = rows > low * tiles ? tile(int(low) + 1, vectors) : usual;
  TileInput a = from;
  TileOutput y = to;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t row = rows * i / tiles, height = rows * (i + 1) / tiles - row;
    a.a = from.a + row * from.row;
    y.y = to.y + row * to.row;
    if (to.residual != nullptr) y.residual = to.residual + row * to.residual_row;
    a.ahead = i < coming ? from.b + (vectors + i) * from.vector : nullptr;
    (height == low ? usual : taller)(a, y);
  }
}

// How vectors are cut into panels: pairs, and a triple where one would be left over.
struct Cut {
  int64_t vectors;
  int64_t panels() const { return vectors <= 1 ? vectors : vectors / 2; }
  int width(int64_t i) const { return vectors == 1 ? 1 : i + 1 == panels() && vectors % 2 != 0 ? 3 : 2; }
};

}  // namespace FASTCNN_ISA
}  // namespace plan
}  // namespace fastcnn
