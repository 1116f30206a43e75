// SPDX-License-Identifier: Apache-2.0
// Rows of elements on their way into a scratch: cleared, widened to the accumulator's type, split by a stride of two.
#pragma once

#include <cstring>

#include "simd.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {

template <typename A> FASTCNN_INLINE void fill_zero(A* p, int64_t count) {
  if (count > 0) std::memset(p, 0, size_t(count) * sizeof(A));
}

// dst[i] = src[i] in the accumulator's type.
template <typename S> FASTCNN_INLINE void widen_row(const S* src, Accumulator<S>* dst, int64_t count) {
  using V = VecOf<S>;
  int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes) V::load(src + i).store(dst + i);
  if (i < count) V::load(src + i, int(count - i)).store(dst + i, int(count - i));
}

// The even and the odd elements of a followed by b.
template <typename A> FASTCNN_INLINE void split_pairs(Vec<A> a, Vec<A> b, Vec<A>* even, Vec<A>* odd) {
  constexpr int kLanes = Vec<A>::kLanes;
  if constexpr (kLanes == 16) {
    even->v = __builtin_shufflevector(a.v, b.v, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    odd->v = __builtin_shufflevector(a.v, b.v, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  } else if constexpr (kLanes == 8) {
    even->v = __builtin_shufflevector(a.v, b.v, 0, 2, 4, 6, 8, 10, 12, 14);
    odd->v = __builtin_shufflevector(a.v, b.v, 1, 3, 5, 7, 9, 11, 13, 15);
  } else if constexpr (kLanes == 4) {
    even->v = __builtin_shufflevector(a.v, b.v, 0, 2, 4, 6);
    odd->v = __builtin_shufflevector(a.v, b.v, 1, 3, 5, 7);
  } else {
    static_assert(kLanes == 2, "a vector of 2, 4, 8 or 16 lanes");
    even->v = __builtin_shufflevector(a.v, b.v, 0, 2);
    odd->v = __builtin_shufflevector(a.v, b.v, 1, 3);
  }
}

// a0 b0 a1 b1 ... in two vectors.
template <typename A> FASTCNN_INLINE void interleave(Vec<A> a, Vec<A> b, Vec<A>* low, Vec<A>* high) {
  constexpr int kLanes = Vec<A>::kLanes;
  if constexpr (kLanes == 16) {
    low->v = __builtin_shufflevector(a.v, b.v, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    high->v = __builtin_shufflevector(a.v, b.v, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  } else if constexpr (kLanes == 8) {
    low->v = __builtin_shufflevector(a.v, b.v, 0, 8, 1, 9, 2, 10, 3, 11);
    high->v = __builtin_shufflevector(a.v, b.v, 4, 12, 5, 13, 6, 14, 7, 15);
  } else if constexpr (kLanes == 4) {
    low->v = __builtin_shufflevector(a.v, b.v, 0, 4, 1, 5);
    high->v = __builtin_shufflevector(a.v, b.v, 2, 6, 3, 7);
  } else {
    static_assert(kLanes == 2, "a vector of 2, 4, 8 or 16 lanes");
    low->v = __builtin_shufflevector(a.v, b.v, 0, 2);
    high->v = __builtin_shufflevector(a.v, b.v, 1, 3);
  }
}

// even[j] = src[2 j] for j < evens, odd[j] = src[2 j + 1] for j < odds, reading `count` elements of src.
template <typename S> FASTCNN_INLINE void split_row(const S* src, int64_t count, Accumulator<S>* even, int64_t evens,
                                                    Accumulator<S>* odd, int64_t odds) {
  using V = VecOf<S>;
  const auto part = [](int64_t left) { return left >= V::kLanes ? V::kLanes : left > 0 ? int(left) : 0; };
  for (int64_t j = 0; 2 * j < count; j += V::kLanes) {
    V first, second;
    if (2 * (j + V::kLanes) <= count) {
      split_pairs(V::load(src + 2 * j), V::load(src + 2 * j + V::kLanes), &first, &second);
    } else {
      const int upper = part(count - 2 * j - V::kLanes);
      split_pairs(V::load(src + 2 * j, part(count - 2 * j)), upper > 0 ? V::load(src + 2 * j + V::kLanes, upper) : V(),
                  &first, &second);
    }
    if (j + V::kLanes <= evens)
      first.store(even + j);
    else if (j < evens)
      first.store(even + j, part(evens - j));
    if (j + V::kLanes <= odds)
      second.store(odd + j);
    else if (j < odds)
      second.store(odd + j, part(odds - j));
  }
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
