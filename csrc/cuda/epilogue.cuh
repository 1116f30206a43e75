// SPDX-License-Identifier: Apache-2.0
// What a kernel does between its sum and its store: one activation for all lanes of a thread, chosen at run time but
// outside the loop over them.
#pragma once

#include "../common/epilogue.h"
#include "launch.h"

namespace fastcnn {

template <typename A, int kCount> __device__ __forceinline__ void activate(Activation kind, A (&lanes)[kCount]) {
  const auto all = [&](auto function) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) lanes[i] = function(lanes[i]);
  };
  switch (kind) {
    case Activation::kIdentity: return;
    case Activation::kRelu: return all(Relu());
    case Activation::kRelu6: return all(Relu6());
    case Activation::kHardSwish: return all(HardSwish());
    case Activation::kHardSigmoid: return all(HardSigmoid());
    case Activation::kSilu: return all(Silu());
    case Activation::kSigmoid: return all(Sigmoid());
  }
}

// lanes: act'(lanes), each in its place.
template <typename A, int kCount> __device__ __forceinline__ void differentiate(Activation kind, A (&lanes)[kCount]) {
  const auto all = [&](auto function) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) lanes[i] = function.derivative(lanes[i]);
  };
  switch (kind) {
    case Activation::kIdentity: return all(Identity());
    case Activation::kRelu: return all(Relu());
    case Activation::kRelu6: return all(Relu6());
    case Activation::kHardSwish: return all(HardSwish());
    case Activation::kHardSigmoid: return all(HardSigmoid());
    case Activation::kSilu: return all(Silu());
    case Activation::kSigmoid: return all(Sigmoid());
  }
}

// The same with the functor fixed.
template <typename F, typename A, int kCount> __device__ __forceinline__ void activate(F function, A (&lanes)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) lanes[i] = function(lanes[i]);
}
template <typename F, typename A, int kCount>
__device__ __forceinline__ void differentiate(F function, A (&lanes)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) lanes[i] = function.derivative(lanes[i]);
}

// Identity, ReLU and ReLU6 are one pair of bounds: kernels of few instructions an output take these instead of a
// branch.
struct Bounds {
  float low, high;
  // clamp of common/epilogue.h in two instructions where the device has a minimum that keeps a NaN.
  __device__ __forceinline__ float operator()(float x) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(x) : "f"(x), "f"(low));
    asm("min.NaN.f32 %0, %1, %2;" : "=f"(x) : "f"(x), "f"(high));
    return x;
#else
    return clamp(x, low, high);
#endif
  }
};

inline bool has_bounds(Activation kind) {
  return kind == Activation::kIdentity || kind == Activation::kRelu || kind == Activation::kRelu6;
}

inline Bounds bounds_of(Activation kind) {
  constexpr float kInfinity = __builtin_huge_valf();
  return {kind == Activation::kIdentity ? -kInfinity : 0.0f, kind == Activation::kRelu6 ? 6.0f : kInfinity};
}

}  // namespace fastcnn
