// SPDX-License-Identifier: Apache-2.0
// The activations: one definition each, for forward and backward, scalar and vector, CPU and CUDA.
//
// A is float, double or a SIMD vector of them. A vector type brings clamp, select, exp and the comparisons as free functions, found by
// argument-dependent lookup; the scalar ones stand here. A NaN input stays NaN: clamp returns x when the comparison is unordered.
#pragma once

#include <cmath>

#include "namespace.h"

namespace fastcnn {

enum class Activation : int { kIdentity, kRelu, kRelu6, kHardSwish, kHardSigmoid, kSilu, kSigmoid };

inline namespace FASTCNN_ISA {

FASTCNN_INLINE float clamp(float x, float low, float high) { return x < low ? low : x > high ? high : x; }
FASTCNN_INLINE double clamp(double x, double low, double high) { return x < low ? low : x > high ? high : x; }
FASTCNN_INLINE float maximum(float x, float low) { return x < low ? low : x; }
FASTCNN_INLINE double maximum(double x, double low) { return x < low ? low : x; }
FASTCNN_INLINE float select(bool condition, float yes, float no) { return condition ? yes : no; }
FASTCNN_INLINE double select(bool condition, double yes, double no) { return condition ? yes : no; }
FASTCNN_INLINE float exponential(float x) { return std::exp(x); }
FASTCNN_INLINE double exponential(double x) { return std::exp(x); }

struct Identity {
  template <typename A> FASTCNN_INLINE A operator()(A x) const { return x; }
  template <typename A> FASTCNN_INLINE A derivative(A) const { return A(1); }
};

struct Relu {
  template <typename A> FASTCNN_INLINE A operator()(A x) const { return maximum(x, A(0)); }
  template <typename A> FASTCNN_INLINE A derivative(A x) const { return select(x <= A(0), A(0), A(1)); }
};

struct Relu6 {  // min(max(x, 0), 6), arXiv:1801.04381
  template <typename A> FASTCNN_INLINE A operator()(A x) const { return clamp(x, A(0), A(6)); }
  template <typename A> FASTCNN_INLINE A derivative(A x) const {
    return select(x > A(0), select(x < A(6), A(1), A(0)), A(0));
  }
};

struct HardSwish {  // x * relu6(x + 3) / 6, arXiv:1905.02244 sec. 5.2
  template <typename A> FASTCNN_INLINE A operator()(A x) const { return x * clamp(x + A(3), A(0), A(6)) * A(1.0 / 6); }
  template <typename A> FASTCNN_INLINE A derivative(A x) const {
    return select(x <= A(-3), A(0), select(A(3) <= x, A(1), x * A(1.0 / 3) + A(0.5)));
  }
};

struct HardSigmoid {  // relu6(x + 3) / 6, arXiv:1905.02244
  template <typename A> FASTCNN_INLINE A operator()(A x) const { return clamp(x + A(3), A(0), A(6)) * A(1.0 / 6); }
  template <typename A> FASTCNN_INLINE A derivative(A x) const {
    return select(x > A(-3), select(x < A(3), A(1.0 / 6), A(0)), A(0));
  }
};

struct Sigmoid {
  template <typename A> FASTCNN_INLINE A operator()(A x) const { return A(1) / (A(1) + exponential(A(0) - x)); }
  template <typename A> FASTCNN_INLINE A derivative(A x) const {
    const A s = (*this)(x);
    return s * (A(1) - s);
  }
};

struct Silu {  // x * sigmoid(x), arXiv:1710.05941
  template <typename A> FASTCNN_INLINE A operator()(A x) const { return x / (A(1) + exponential(A(0) - x)); }
  template <typename A> FASTCNN_INLINE A derivative(A x) const {
    const A s = Sigmoid()(x);
    return s * (A(1) + x * (A(1) - s));
  }
};

// Calls f(Functor{}) for the activation; every enumerator is named, so the compiler reports a forgotten one.
template <typename F> FASTCNN_HOST_INLINE void dispatch_activation(Activation kind, F&& f) {
  switch (kind) {
    case Activation::kIdentity: return f(Identity{});
    case Activation::kRelu: return f(Relu{});
    case Activation::kRelu6: return f(Relu6{});
    case Activation::kHardSwish: return f(HardSwish{});
    case Activation::kHardSigmoid: return f(HardSigmoid{});
    case Activation::kSilu: return f(Silu{});
    case Activation::kSigmoid: return f(Sigmoid{});
  }
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
