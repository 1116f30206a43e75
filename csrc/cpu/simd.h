// SPDX-License-Identifier: Apache-2.0
// Vec<A>: one hardware vector of the accumulator type A (float: 16 lanes on AVX-512, 8 on AVX2, 4 on plain x86-64 and aarch64; double: plain
// builds only). It loads from any storage type and converts on the way, so a kernel is written once: load -> compute in A -> store.
//
// load(p, n) and store(p, n) touch the first n lanes only and never read or write past them: they are the channel tails.
#pragma once

#include <cstdint>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "../common/epilogue.h"
#include "../common/scalar.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {

#if defined(__AVX2__)
template <typename A> struct Vec;
#endif

#if defined(__AVX512F__)

template <> struct Vec<float> {
  static constexpr int kLanes = 16;
  using Mask = __mmask16;
  __m512 v;

  FASTCNN_INLINE Vec() : v(_mm512_setzero_ps()) {}
  FASTCNN_INLINE Vec(__m512 value) : v(value) {}
  FASTCNN_INLINE explicit Vec(float value) : v(_mm512_set1_ps(value)) {}
  FASTCNN_INLINE explicit Vec(double value) : v(_mm512_set1_ps(float(value))) {}
  FASTCNN_INLINE explicit Vec(int value) : v(_mm512_set1_ps(float(value))) {}

  static FASTCNN_INLINE __mmask16 first(int n) { return __mmask16((1u << n) - 1u); }
  static FASTCNN_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
  static FASTCNN_INLINE Vec load(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
  FASTCNN_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
  FASTCNN_INLINE void store(float* p, int n) const { _mm512_mask_storeu_ps(p, first(n), v); }

  static FASTCNN_INLINE Vec widen(__m256i bits, BFloat16) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static FASTCNN_INLINE Vec widen(__m256i bits, Half) { return _mm512_cvtph_ps(bits); }
  FASTCNN_INLINE __m256i narrow(Half) const { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  FASTCNN_INLINE __m256i narrow(BFloat16) const {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, _mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
    return _mm512_cvtepi32_epi16(rounded);
  }
  template <typename S> static FASTCNN_INLINE Vec load(const S* p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), S{});
  }
  template <typename S> static FASTCNN_INLINE Vec load(const S* p, int n) { return widen(_mm256_maskz_loadu_epi16(first(n), p), S{}); }
  template <typename S> FASTCNN_INLINE void store(S* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(S{})); }
  template <typename S> FASTCNN_INLINE void store(S* p, int n) const { _mm256_mask_storeu_epi16(p, first(n), narrow(S{})); }

  FASTCNN_INLINE float sum() const { return _mm512_reduce_add_ps(v); }
  FASTCNN_INLINE float operator[](int lane) const { return v[lane]; }
};

using VecF = Vec<float>;
FASTCNN_INLINE VecF operator+(VecF a, VecF b) { return _mm512_add_ps(a.v, b.v); }
FASTCNN_INLINE VecF operator-(VecF a, VecF b) { return _mm512_sub_ps(a.v, b.v); }
FASTCNN_INLINE VecF operator*(VecF a, VecF b) { return _mm512_mul_ps(a.v, b.v); }
FASTCNN_INLINE VecF operator/(VecF a, VecF b) { return _mm512_div_ps(a.v, b.v); }
FASTCNN_INLINE VecF fma(VecF a, VecF b, VecF c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
FASTCNN_INLINE VecF maximum(VecF x, VecF low) { return _mm512_max_ps(low.v, x.v); }  // the second operand wins on NaN
FASTCNN_INLINE VecF clamp(VecF x, VecF low, VecF high) { return _mm512_min_ps(high.v, _mm512_max_ps(low.v, x.v)); }
FASTCNN_INLINE __mmask16 operator<(VecF a, VecF b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ); }
FASTCNN_INLINE __mmask16 operator>(VecF a, VecF b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ); }
FASTCNN_INLINE __mmask16 operator<=(VecF a, VecF b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ); }
FASTCNN_INLINE VecF select(__mmask16 m, VecF yes, VecF no) { return _mm512_mask_blend_ps(m, no.v, yes.v); }
// low, high: a[0], b[0], a[1], b[1], ...
FASTCNN_INLINE void interleave(VecF a, VecF b, VecF& low, VecF& high) {
  const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  low = _mm512_permutex2var_ps(a.v, first, b.v);
  high = _mm512_permutex2var_ps(a.v, _mm512_add_epi32(first, _mm512_set1_epi32(8)), b.v);
}
FASTCNN_INLINE VecF round_nearest(VecF x) { return _mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

#elif defined(__AVX2__)

template <> struct Vec<float> {
  static constexpr int kLanes = 8;
  using Mask = __m256;
  __m256 v;

  FASTCNN_INLINE Vec() : v(_mm256_setzero_ps()) {}
  FASTCNN_INLINE Vec(__m256 value) : v(value) {}
  FASTCNN_INLINE explicit Vec(float value) : v(_mm256_set1_ps(value)) {}
  FASTCNN_INLINE explicit Vec(double value) : v(_mm256_set1_ps(float(value))) {}
  FASTCNN_INLINE explicit Vec(int value) : v(_mm256_set1_ps(float(value))) {}

  static FASTCNN_INLINE __m256i first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static FASTCNN_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
  static FASTCNN_INLINE Vec load(const float* p, int n) { return _mm256_maskload_ps(p, first(n)); }
  FASTCNN_INLINE void store(float* p) const { _mm256_storeu_ps(p, v); }
  FASTCNN_INLINE void store(float* p, int n) const { _mm256_maskstore_ps(p, first(n), v); }

  static FASTCNN_INLINE Vec widen(__m128i bits, BFloat16) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  static FASTCNN_INLINE Vec widen(__m128i bits, Half) { return _mm256_cvtph_ps(bits); }
  FASTCNN_INLINE __m128i narrow(Half) const { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  FASTCNN_INLINE __m128i narrow(BFloat16) const {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i packed = _mm256_packus_epi32(_mm256_blendv_epi8(rounded, quiet, nan), _mm256_setzero_si256());
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
  }
  template <typename S> static FASTCNN_INLINE Vec load(const S* p) {
    return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), S{});
  }
  template <typename S> static FASTCNN_INLINE Vec load(const S* p, int n) {
    S lanes[kLanes] = {};
    std::memcpy(lanes, p, size_t(n) * sizeof(S));
    return load(lanes);
  }
  template <typename S> FASTCNN_INLINE void store(S* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(S{})); }
  template <typename S> FASTCNN_INLINE void store(S* p, int n) const {
    S lanes[kLanes];
    store(lanes);
    std::memcpy(p, lanes, size_t(n) * sizeof(S));
  }

  FASTCNN_INLINE float sum() const {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  FASTCNN_INLINE float operator[](int lane) const { return v[lane]; }
};

using VecF = Vec<float>;
FASTCNN_INLINE VecF operator+(VecF a, VecF b) { return _mm256_add_ps(a.v, b.v); }
FASTCNN_INLINE VecF operator-(VecF a, VecF b) { return _mm256_sub_ps(a.v, b.v); }
FASTCNN_INLINE VecF operator*(VecF a, VecF b) { return _mm256_mul_ps(a.v, b.v); }
FASTCNN_INLINE VecF operator/(VecF a, VecF b) { return _mm256_div_ps(a.v, b.v); }
FASTCNN_INLINE VecF fma(VecF a, VecF b, VecF c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
FASTCNN_INLINE VecF maximum(VecF x, VecF low) { return _mm256_max_ps(low.v, x.v); }  // the second operand wins on NaN
FASTCNN_INLINE VecF clamp(VecF x, VecF low, VecF high) { return _mm256_min_ps(high.v, _mm256_max_ps(low.v, x.v)); }
FASTCNN_INLINE __m256 operator<(VecF a, VecF b) { return _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ); }
FASTCNN_INLINE __m256 operator>(VecF a, VecF b) { return _mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ); }
FASTCNN_INLINE __m256 operator<=(VecF a, VecF b) { return _mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ); }
FASTCNN_INLINE VecF select(__m256 m, VecF yes, VecF no) { return _mm256_blendv_ps(no.v, yes.v, m); }
// low, high: a[0], b[0], a[1], b[1], ...
FASTCNN_INLINE void interleave(VecF a, VecF b, VecF& low, VecF& high) {
  const __m256 even = _mm256_unpacklo_ps(a.v, b.v), odd = _mm256_unpackhi_ps(a.v, b.v);  // of each half
  low = _mm256_permute2f128_ps(even, odd, 0x20);
  high = _mm256_permute2f128_ps(even, odd, 0x31);
}
FASTCNN_INLINE VecF round_nearest(VecF x) { return _mm256_round_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
FASTCNN_INLINE VecF power_of_two(VecF n) {  // 2^n for integral n in [-126, 127]
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127)), 23));
}

#endif

}  // namespace FASTCNN_ISA
}  // namespace fastcnn

#if !defined(__AVX2__)
#include "simd_plain.h"
#endif

namespace fastcnn {
inline namespace FASTCNN_ISA {

#if defined(__AVX2__)
// e^x = 2^n e^r within 2 ulp: x = n ln2 + r, |r| <= ln2 / 2, and a degree-6 polynomial in r (Cephes' coefficients). Inf from 88.73 on, NaN
// stays; below -87.34 AVX-512 goes through the subnormals to 0, AVX2 to 0 at once.
FASTCNN_INLINE VecF exponential(VecF x) {
#if defined(__AVX512F__)
  const VecF limited = clamp(x, VecF(-104.f), VecF(89.f));  // both ends saturate in scalef
#else
  const VecF limited = clamp(x, VecF(-87.33654f), VecF(88.72283f));
#endif
  const VecF n = round_nearest(limited * VecF(1.44269504088896341f));
  VecF r = fma(n, VecF(-0.693359375f), limited);
  r = fma(n, VecF(2.12194440e-4f), r);
  VecF p(1.9875691500e-4f);
  p = fma(p, r, VecF(1.3981999507e-3f));
  p = fma(p, r, VecF(8.3334519073e-3f));
  p = fma(p, r, VecF(4.1665795894e-2f));
  p = fma(p, r, VecF(1.6666665459e-1f));
  p = fma(p, r, VecF(5.0000001201e-1f));
  p = fma(p, r * r, r + VecF(1));
#if defined(__AVX512F__)
  return _mm512_scalef_ps(p.v, n.v);
#else
  const VecF half_power = power_of_two(clamp(n - VecF(1), VecF(-126), VecF(126)));  // n may be 128: scale in two steps
  const VecF result = p * half_power * VecF(2);
  return select(x > VecF(88.72283f), VecF(__builtin_inff()), select(x < VecF(-87.33654f), VecF(0), result));
#endif
}
#endif

// The widest type a kernel accumulates in for storage S.
template <typename S> using VecOf = Vec<Accumulator<S>>;

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
