// SPDX-License-Identifier: Apache-2.0
// What a kernel of a plan is given, and the table that a build for one instruction set fills.
#pragma once

#include "program.h"
#include "team.h"

namespace fastcnn {
namespace plan {

// A value of the present images, in floats. channel is 1 but for a picture.
struct Map {
  float* data;
  int64_t images, H, W, C;
  int64_t image, row, pixel, channel;

  int64_t pixels() const { return images * H * W; }
  float* at(int64_t n, int64_t y = 0, int64_t x = 0) const { return data + n * image + y * row + x * pixel; }
};

struct Call {
  const Step& step;
  const Map* maps;
  const float* weights;
  float* scratch;  // this thread's own, of scratch() floats
  float* shared;   // the team's, of shared() floats
  Team team;

  template <typename Args> const Args& args() const { return step.args<Args>(); }
  const Map& map(int64_t value) const { return maps[value]; }
  const Map* optional_map(int64_t value) const { return value == kNone ? nullptr : maps + value; }
  const float* weight(int64_t offset) const { return offset == kNone ? nullptr : weights + offset; }
};

inline int64_t aligned(int64_t floats) { return ceil_div(floats, kAlignment) * kAlignment; }

// Every thread of the team calls `run`; the executor waits for all of them after it. The other two are asked before, of
// the thread that has most to do.
struct Kernel {
  void (*run)(const Call&) = nullptr;
  int64_t (*scratch)(const Call&) = [](const Call&) -> int64_t { return 0; };
  int64_t (*shared)(const Call&) = [](const Call&) -> int64_t { return 0; };
};

struct Kernels {
  int64_t lanes;
  Kernel of[int(Op::kCount)];
};

}  // namespace plan
}  // namespace fastcnn
