// SPDX-License-Identifier: Apache-2.0
// Vec<A> without an instruction set to name: 16 bytes of the compiler's own vector type, which it maps to SSE2 or NEON. This is also the build that
// serves double. What has no vector form (half types, tails, exp) goes lane by lane in functions kept out of line, or every kernel would
// repeat it at each load and take minutes to compile.
#pragma once

#include <cmath>
#include <cstring>

#include "../common/epilogue.h"
#include "../common/scalar.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {

#define FASTCNN_LANEWISE inline __attribute__((noinline))

template <typename A> struct Vec {
  static constexpr int kBytes = 16;
  static constexpr int kLanes = kBytes / int(sizeof(A));
  typedef A Native __attribute__((vector_size(kBytes)));
  using Mask = decltype(Native{} < Native{});  // all ones or all zeros a lane
  Native v;

  FASTCNN_INLINE Vec() : v{} {}
  FASTCNN_INLINE Vec(Native value) : v(value) {}
  FASTCNN_INLINE explicit Vec(double value) : v(Native{} + A(value)) {}
  FASTCNN_INLINE explicit Vec(float value) : v(Native{} + A(value)) {}
  FASTCNN_INLINE explicit Vec(int value) : v(Native{} + A(value)) {}

  template <typename S> static FASTCNN_LANEWISE Vec load(const S* p) {
    Vec r;
    for (int i = 0; i < kLanes; ++i) r.v[i] = to_accumulator(p[i]);
    return r;
  }
  template <typename S> static FASTCNN_LANEWISE Vec load(const S* p, int n) {
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
  template <typename S> FASTCNN_LANEWISE void store(S* p, int n) const {
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

template <typename A> FASTCNN_INLINE Vec<A> maximum(Vec<A> x, Vec<A> low) { return x.v < low.v ? low.v : x.v; }
template <typename A> FASTCNN_INLINE Vec<A> clamp(Vec<A> x, Vec<A> low, Vec<A> high) {
  const typename Vec<A>::Native raised = x.v < low.v ? low.v : x.v;
  return raised > high.v ? high.v : raised;
}
template <typename A> FASTCNN_INLINE typename Vec<A>::Mask operator<(Vec<A> a, Vec<A> b) { return a.v < b.v; }
template <typename A> FASTCNN_INLINE typename Vec<A>::Mask operator>(Vec<A> a, Vec<A> b) { return a.v > b.v; }
template <typename A> FASTCNN_INLINE typename Vec<A>::Mask operator<=(Vec<A> a, Vec<A> b) { return a.v <= b.v; }
template <typename A> FASTCNN_INLINE Vec<A> select(typename Vec<A>::Mask mask, Vec<A> yes, Vec<A> no) { return mask ? yes.v : no.v; }
// low, high: a[0], b[0], a[1], b[1], ...
template <typename A> FASTCNN_INLINE void interleave(Vec<A> a, Vec<A> b, Vec<A>& low, Vec<A>& high) {
  constexpr int kHalf = Vec<A>::kLanes / 2;
  for (int i = 0; i < kHalf; ++i) {
    low.v[2 * i] = a.v[i], low.v[2 * i + 1] = b.v[i];
    high.v[2 * i] = a.v[kHalf + i], high.v[2 * i + 1] = b.v[kHalf + i];
  }
}
template <typename A> FASTCNN_LANEWISE Vec<A> exponential(Vec<A> x) {
  for (int i = 0; i < Vec<A>::kLanes; ++i) x.v[i] = std::exp(x.v[i]);
  return x;
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
