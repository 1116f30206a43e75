// SPDX-License-Identifier: Apache-2.0
// Storage types of a tensor element, free of torch: kernels load them, compute in float (double for double), and round once at the store.
#pragma once

#include <cstdint>
#include <cstring>

#include "namespace.h"

namespace fastcnn {

enum class Dtype : int { kFloat32, kFloat64, kFloat16, kBFloat16 };

struct Half {  // IEEE 754 binary16
  uint16_t bits;
};

struct BFloat16 {  // the upper half of a binary32
  uint16_t bits;
};

inline namespace FASTCNN_ISA {

template <typename S> struct AccumulatorOf { using type = float; };
template <> struct AccumulatorOf<double> { using type = double; };
template <typename S> using Accumulator = typename AccumulatorOf<S>::type;

FASTCNN_INLINE float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

FASTCNN_INLINE uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

FASTCNN_INLINE float to_accumulator(float x) { return x; }
FASTCNN_INLINE double to_accumulator(double x) { return x; }
FASTCNN_INLINE float to_accumulator(BFloat16 x) { return bits_to_float(uint32_t(x.bits) << 16); }

FASTCNN_INLINE float to_accumulator(Half x) {
  // Scaling by 2^112 moves the binary16 exponent into place and renormalises subnormals; Inf and NaN keep an all-ones exponent.
  constexpr uint32_t kExponent = 0x7c00u;
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  if (magnitude >= kExponent) return bits_to_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  return bits_to_float(sign | float_to_bits(bits_to_float(magnitude << 13) * 0x1p112f));
}

template <typename S> FASTCNN_INLINE S from_accumulator(Accumulator<S> x);
template <> FASTCNN_INLINE float from_accumulator<float>(float x) { return x; }
template <> FASTCNN_INLINE double from_accumulator<double>(double x) { return x; }

template <> FASTCNN_INLINE BFloat16 from_accumulator<BFloat16>(float x) {  // round to nearest even
  const uint32_t bits = float_to_bits(x);
  if (x != x) return {uint16_t(bits >> 16 | 0x40u)};
  return {uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

template <> FASTCNN_INLINE Half from_accumulator<Half>(float x) {  // round to nearest even
  const uint32_t bits = float_to_bits(x);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000u);
  uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {uint16_t(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};  // rounds past 65504
  if (magnitude < 0x38800000u) {                                    // below 2^-14: subnormal, let the float adder round
    const float shifted = bits_to_float(magnitude) + 0.5f;
    return {uint16_t(sign | (float_to_bits(shifted) - 0x3f000000u))};
  }
  magnitude += 0xfffu + (magnitude >> 13 & 1u);
  return {uint16_t(sign | (magnitude - 0x38000000u) >> 13)};
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
