// SPDX-License-Identifier: Apache-2.0
// Runs of elements vector by vector, the last, short one included: the body is written once, over a lane set that is All or First.
#pragma once

#include "simd.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {

template <typename V> struct All {
  static constexpr bool kFull = true;
  template <typename S> FASTCNN_INLINE V load(const S* p) const { return V::load(p); }
  template <typename S> FASTCNN_INLINE void store(V value, S* p) const { value.store(p); }
  FASTCNN_INLINE V keep(V value) const { return value; }
};

template <typename A> struct LaneIndex {
  alignas(64) static constexpr A kValues[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
};

template <typename V> struct First {
  static constexpr bool kFull = false;
  int n;
  template <typename S> FASTCNN_INLINE V load(const S* p) const { return V::load(p, n); }
  template <typename S> FASTCNN_INLINE void store(V value, S* p) const { value.store(p, n); }
  // zero outside the set, for sums
  FASTCNN_INLINE V keep(V value) const {
    using A = std::remove_reference_t<decltype(value[0])>;
    return select(V::load(LaneIndex<A>::kValues) < V(n), value, V(0));
  }
};

// body(i, lanes) for i = 0, L, 2 L, ... below count.
template <typename V, typename F> FASTCNN_INLINE void over_lanes(int64_t count, F&& body) {
  int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes) body(i, All<V>{});
  if (i < count) body(i, First<V>{int(count - i)});
}

// The same with `kUnroll` independent accumulator slots, for sums: body(i, lanes, slot).
template <typename V, int kUnroll, typename F> FASTCNN_INLINE void over_lanes_unrolled(int64_t count, F&& body) {
  int64_t i = 0;
  for (; i + kUnroll * V::kLanes <= count; i += kUnroll * V::kLanes)
    for (int slot = 0; slot < kUnroll; ++slot) body(i + slot * V::kLanes, All<V>{}, slot);
  for (; i + V::kLanes <= count; i += V::kLanes) body(i, All<V>{}, 0);
  if (i < count) body(i, First<V>{int(count - i)}, 0);
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
