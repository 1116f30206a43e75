// SPDX-License-Identifier: Apache-2.0
// Vec<A> without an instruction set to name: arrays of lanes in loops short enough for any compiler to vectorise (SSE2, NEON).
// This is also the build that serves double.
#pragma once

#include <cmath>
#include <cstring>

#include "../common/epilogue.h"
#include "../common/scalar.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {

template <int N> struct LaneMask {
  bool lane[N];
};

template <typename A> struct Vec {
  static constexpr int kBytes = 16;
  static constexpr int kLanes = kBytes / int(sizeof(A));
  using Mask = LaneMask<kLanes>;
  typedef A Native __attribute__((vector_size(kBytes)));
  Native v;

  FASTCNN_INLINE Vec() : v{} {}
  FASTCNN_INLINE Vec(Native value) : v(value) {}
  FASTCNN_INLINE explicit Vec(double value) : v(Native{} + A(value)) {}
  FASTCNN_INLINE explicit Vec(float value) : v(Native{} + A(value)) {}
  FASTCNN_INLINE explicit Vec(int value) : v(Native{} + A(value)) {}

  template <typename S> static FASTCNN_INLINE Vec load(const S* p) {
    Vec r;
    for (int i = 0; i < kLanes; ++i) r.v[i] = to_accumulator(p[i]);
    return r;
  }
  template <typename S> static FASTCNN_INLINE Vec load(const S* p, int n) {
    Vec r;
    for (int i = 0; i < n; ++i) r.v[i] = to_accumulator(p[i]);
    return r;
  }
  static FASTCNN_INLINE Vec load(const A* p) {
    Vec r;
    std::memcpy(&r.v, p, sizeof r.v);
    return r;
  }
  template <typename S> FASTCNN_INLINE void store(S* p) const { store(p, kLanes); }
  template <typename S> FASTCNN_INLINE void store(S* p, int n) const {
    for (int i = 0; i < n; ++i) p[i] = from_accumulator<S>(v[i]);
  }
  FASTCNN_INLINE void store(A* p) const { std::memcpy(p, &v, sizeof v); }

  FASTCNN_INLINE A sum() const {
    A total = v[0];
    for (int i = 1; i < kLanes; ++i) total += v[i];
    return total;
  }
  FASTCNN_INLINE A operator[](int lane) const { return v[lane]; }
};

using VecF = Vec<float>;

template <typename A> FASTCNN_INLINE Vec<A> operator+(Vec<A> a, Vec<A> b) { return a.v + b.v; }
template <typename A> FASTCNN_INLINE Vec<A> operator-(Vec<A> a, Vec<A> b) { return a.v - b.v; }
template <typename A> FASTCNN_INLINE Vec<A> operator*(Vec<A> a, Vec<A> b) { return a.v * b.v; }
template <typename A> FASTCNN_INLINE Vec<A> operator/(Vec<A> a, Vec<A> b) { return a.v / b.v; }
template <typename A> FASTCNN_INLINE Vec<A> fma(Vec<A> a, Vec<A> b, Vec<A> c) { return a.v * b.v + c.v; }

template <typename A, typename F> FASTCNN_INLINE Vec<A> map_lanes(Vec<A> x, F f) {
  for (int i = 0; i < Vec<A>::kLanes; ++i) x.v[i] = f(x.v[i]);
  return x;
}
template <typename A, typename F> FASTCNN_INLINE typename Vec<A>::Mask compare_lanes(Vec<A> a, Vec<A> b, F f) {
  typename Vec<A>::Mask mask;
  for (int i = 0; i < Vec<A>::kLanes; ++i) mask.lane[i] = f(a.v[i], b.v[i]);
  return mask;
}
template <typename A> FASTCNN_INLINE Vec<A> maximum(Vec<A> x, Vec<A> low) {
  for (int i = 0; i < Vec<A>::kLanes; ++i) x.v[i] = maximum(A(x.v[i]), A(low.v[i]));
  return x;
}
template <typename A> FASTCNN_INLINE Vec<A> clamp(Vec<A> x, Vec<A> low, Vec<A> high) {
  for (int i = 0; i < Vec<A>::kLanes; ++i) x.v[i] = clamp(A(x.v[i]), A(low.v[i]), A(high.v[i]));
  return x;
}
template <typename A> FASTCNN_INLINE typename Vec<A>::Mask operator<(Vec<A> a, Vec<A> b) {
  return compare_lanes(a, b, [](A x, A y) { return x < y; });
}
template <typename A> FASTCNN_INLINE typename Vec<A>::Mask operator>(Vec<A> a, Vec<A> b) {
  return compare_lanes(a, b, [](A x, A y) { return x > y; });
}
template <typename A> FASTCNN_INLINE typename Vec<A>::Mask operator<=(Vec<A> a, Vec<A> b) {
  return compare_lanes(a, b, [](A x, A y) { return x <= y; });
}
template <typename A> FASTCNN_INLINE Vec<A> select(typename Vec<A>::Mask mask, Vec<A> yes, Vec<A> no) {
  for (int i = 0; i < Vec<A>::kLanes; ++i) no.v[i] = mask.lane[i] ? yes.v[i] : no.v[i];
  return no;
}
template <typename A> FASTCNN_INLINE Vec<A> exponential(Vec<A> x) {
  return map_lanes(x, [](A lane) { return std::exp(lane); });
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
