// SPDX-License-Identifier: Apache-2.0
// Sums over the pixels of each channel, to which every thread of a team adds its rows.
#pragma once

#include <algorithm>
#include <cstring>

#include "step.h"
#include "tile.h"

namespace fastcnn {
namespace plan {
inline namespace FASTCNN_ISA {

// Parts of the rows are summed apart, in shared memory. The team has no say in their number: late threads leave the first
// one to work alone, and its sums have to be the same bits. A thread adds row by row to of(), downwards, and then all call
// finish().
class ChannelSums {
 public:
  ChannelSums(const Call& call, const Map& sums, const Map& y) : call_(call), sums_(sums), H_(y.H), parts_(parts(y)),
        mine_(call.team.share(parts_)) {
    for (int64_t n = 0; n < sums.images; ++n)
      for (int64_t part = mine_.begin; part < mine_.end; ++part) std::memset(at(n, part), 0, size_t(sums.C) * sizeof(float));
  }

  static int64_t shared(const Map& y) { return y.images * parts(y) * aligned(y.C); }

  Range rows() const { return {H_ * mine_.begin / parts_, H_ * mine_.end / parts_}; }  // of this thread
  float* of(int64_t n, int64_t row) const { return at(n, ((row + 1) * parts_ - 1) / H_); }

  void finish() const {
    call_.team.wait();
    const Range vectors = call_.team.share(ceil_div(sums_.C, kLanes));
    for (int64_t n = 0; n < sums_.images; ++n)
      for (int64_t vector = vectors.begin; vector < vectors.end; ++vector) {
        const int64_t channel = vector * kLanes;
        V total(0);
        for (int64_t part = 0; part < parts_; ++part) total = total + V::load(at(n, part) + channel);
        total.store(sums_.at(n) + channel, int(std::min<int64_t>(kLanes, sums_.C - channel)));
      }
  }

 private:
  static int64_t parts(const Map& y) { return std::min<int64_t>(y.H, 8); }
  float* at(int64_t n, int64_t part) const { return call_.shared + (n * parts_ + part) * aligned(sums_.C); }

  const Call& call_;
  const Map& sums_;
  const int64_t H_, parts_;
  const Range mine_;
};

}  // namespace FASTCNN_ISA
}  // namespace plan
}  // namespace fastcnn
