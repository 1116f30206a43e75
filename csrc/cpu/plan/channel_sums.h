// SPDX-License-Identifier: Apache-2.0
// Sums over the pixels of each channel, of which every thread of a team has a part.
#pragma once

#include <cstring>

#include "step.h"
#include "tile.h"

namespace fastcnn {
namespace plan {
inline namespace FASTCNN_ISA {

// A thread adds to mine(), `image()` floats for each image, zero at first; then all call finish(). A thread alone adds to the
// result itself.
class ChannelSums {
 public:
  ChannelSums(const Call& call, const Map& sums) : call_(call), sums_(sums) {
    for (int64_t n = 0; n < sums.images; ++n) std::memset(mine() + n * image(), 0, size_t(sums.C) * sizeof(float));
  }

  static int64_t shared(const Call& call, const Map& sums) { return call.team.size * sums.images * aligned(sums.C); }

  float* mine() const { return alone() ? sums_.data : part(call_.team.rank); }
  int64_t image() const { return alone() ? sums_.image : aligned(sums_.C); }

  void finish() const {
    if (alone()) return;
    call_.team.wait();
    const Range vectors = call_.team.share(ceil_div(sums_.C, kLanes));
    for (int64_t n = 0; n < sums_.images; ++n)
      for (int64_t vector = vectors.begin; vector < vectors.end; ++vector) {
        const int64_t channel = vector * kLanes;
        V total(0);
        for (int rank = 0; rank < call_.team.size; ++rank) total = total + V::load(part(rank) + n * image() + channel);
        total.store(sums_.at(n) + channel, int(std::min<int64_t>(kLanes, sums_.C - channel)));
      }
  }

 private:
  bool alone() const { return call_.team.size == 1; }
  float* part(int rank) const { return call_.shared + rank * sums_.images * aligned(sums_.C); }

  const Call& call_;
  const Map& sums_;
};

}  // namespace FASTCNN_ISA
}  // namespace plan
}  // namespace fastcnn
