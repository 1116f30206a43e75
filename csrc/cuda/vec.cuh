// SPDX-License-Identifier: Apache-2.0
// The only way a kernel touches global memory: vectors of up to 16 bytes, predicated, and their way to the
// accumulator's type and back.
//
// Under the emulator every access is checked for alignment and, when a test asks, recorded: bytes, sectors and DRAM
// traffic are then counted. For the count, every live lane of a warp reaches the same helper calls: predicate the
// access, do not branch around the call.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "../common/scalar.h"
#include "launch.h"

#ifdef FASTCNN_EMULATOR
#define FASTCNN_ACCESS_SITE , const char *file_ = __builtin_FILE(), int line_ = __builtin_LINE()
#define FASTCNN_ACCESS(pointer, bytes, predicate, store) \
  ::simt::access(pointer, bytes, predicate, store, {file_, line_})
#else
#define FASTCNN_ACCESS_SITE
#define FASTCNN_ACCESS(pointer, bytes, predicate, store)
#endif

namespace fastcnn {

constexpr int kVectorBytes = 16;
template <typename S> constexpr int kVectorLanes = kVectorBytes / int(sizeof(S));

template <int kBytes> struct Word;
template <> struct Word<2> { using type = unsigned short; };
template <> struct Word<4> { using type = unsigned; };
template <> struct Word<8> { using type = uint2; };
template <> struct Word<16> { using type = uint4; };

// kLanes elements as they lie in memory, in as few registers.
template <typename S, int kLanes> struct Vec {
  static constexpr int kBytes = int(sizeof(S)) * kLanes;
  typename Word<kBytes>::type word;
};

// Read-only for the whole kernel, or zeros where predicate is false. Aligned to the vector where it is true.
template <int kLanes, typename S>
__device__ __forceinline__ Vec<S, kLanes> load(const S* pointer, bool predicate FASTCNN_ACCESS_SITE) {
  using V = Vec<S, kLanes>;
  FASTCNN_ACCESS(pointer, V::kBytes, predicate, false);
  V v{};
  if (predicate) v.word = __ldg(reinterpret_cast<const decltype(v.word)*>(pointer));
  return v;
}

template <int kLanes, typename S>
__device__ __forceinline__ void store(S* pointer, const Vec<S, kLanes>& v, bool predicate FASTCNN_ACCESS_SITE) {
  FASTCNN_ACCESS(pointer, (Vec<S, kLanes>::kBytes), predicate, true);
  if (predicate) *reinterpret_cast<decltype(v.word)*>(pointer) = v.word;
}

// The bits of one 4-byte word, two elements of a half type, as a pair of float.
__device__ __forceinline__ float2 widen_pair(Half, unsigned bits) {
  __half2_raw pair;
  memcpy(&pair, &bits, sizeof bits);
  return __half22float2(pair);
}
__device__ __forceinline__ float2 widen_pair(BFloat16, unsigned bits) {
  return make_float2(bits_to_float(bits << 16), bits_to_float(bits & 0xffff0000u));
}
__device__ __forceinline__ unsigned narrow_pair(Half, float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  unsigned bits;
  memcpy(&bits, &pair, sizeof bits);
  return bits;
}
__device__ __forceinline__ unsigned narrow_pair(BFloat16, float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  unsigned bits;
  memcpy(&bits, &pair, sizeof bits);
  return bits;
}

template <typename S, int kLanes>
__device__ __forceinline__ void widen(const Vec<S, kLanes>& v, Accumulator<S> (&lanes)[kLanes]) {
  if constexpr (sizeof(S) >= 4) {
    memcpy(lanes, &v, sizeof v);
  } else if constexpr (kLanes == 1) {
    lanes[0] = widen_pair(S{}, unsigned(v.word)).x;
  } else {
    unsigned words[kLanes / 2];
    memcpy(words, &v, sizeof v);
#pragma unroll
    for (int i = 0; i < kLanes / 2; ++i) {
      const float2 pair = widen_pair(S{}, words[i]);
      lanes[2 * i] = pair.x, lanes[2 * i + 1] = pair.y;
    }
  }
}

// Rounded to nearest even.
template <typename S, int kLanes>
__device__ __forceinline__ Vec<S, kLanes> narrow(const Accumulator<S> (&lanes)[kLanes]) {
  Vec<S, kLanes> v;
  if constexpr (sizeof(S) >= 4) {
    memcpy(&v, lanes, sizeof v);
  } else if constexpr (kLanes == 1) {
    v.word = static_cast<unsigned short>(narrow_pair(S{}, lanes[0], 0.0f));
  } else {
    unsigned words[kLanes / 2];
#pragma unroll
    for (int i = 0; i < kLanes / 2; ++i) words[i] = narrow_pair(S{}, lanes[2 * i], lanes[2 * i + 1]);
    memcpy(&v, words, sizeof v);
  }
  return v;
}

// Four of a vector's elements: kernels that would hold too many floats at once widen a vector by quads.
template <typename S, int kLanes> __device__ __forceinline__ Vec<S, 4> quad_of(const Vec<S, kLanes>& v, int quad) {
  Vec<S, 4> part;
  memcpy(&part, reinterpret_cast<const char*>(&v) + quad * int(sizeof part), sizeof part);
  return part;
}
template <typename S, int kLanes>
__device__ __forceinline__ void set_quad(Vec<S, kLanes>& v, int quad, const Vec<S, 4>& part) {
  memcpy(reinterpret_cast<char*>(&v) + quad * int(sizeof part), &part, sizeof part);
}

}  // namespace fastcnn
