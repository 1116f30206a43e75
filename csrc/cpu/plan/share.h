// SPDX-License-Identifier: Apache-2.0
// How a team shares a matrix product of rows (pixels) by vectors (of output channels).
#pragma once

#include <algorithm>

#include "../../common/shape.h"
#include "team.h"

namespace fastcnn {
namespace plan {
inline namespace FASTCNN_ISA {

constexpr int64_t kFar = 10;  // bytes a cycle that a thread gets from the L3 cache

struct Part {
  Range rows, vectors;
};

// Cycles of the busiest thread: the tiles' FMAs, two a cycle, or its weights from far.
inline int64_t cycles(int64_t rows, int64_t vectors, int64_t depth, int64_t lanes) {
  return std::max(rows * vectors * depth / 2, vectors * depth * lanes * int64_t(sizeof(float)) / kFar);
}

// The rows, or the vectors where that leaves less to do for the busiest: each thread then reads its share of the weights only.
inline Part part(int64_t rows, int64_t vectors, int64_t depth, int64_t lanes, const Team& team) {
  const int64_t by_rows = cycles(ceil_div(rows, team.size), vectors, depth, lanes);
  const int64_t by_vectors = cycles(rows, ceil_div(vectors, team.size), depth, lanes);
  if (by_vectors < by_rows) return {{0, rows}, team.share(vectors)};
  return {team.share(rows), {0, vectors}};
}

}  // namespace FASTCNN_ISA
}  // namespace plan
}  // namespace fastcnn
