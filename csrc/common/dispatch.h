// SPDX-License-Identifier: Apache-2.0
// From run-time values to template arguments. Each throws on a value it does not know: nothing falls through in silence.
#pragma once

#include <cstdio>
#include <stdexcept>
#include <type_traits>

#include "namespace.h"
#include "scalar.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {

template <typename T> struct TypeTag { using type = T; };

// Calls f(TypeTag<S>{}) with the storage type. double is computed only by the plain build (DESIGN.md: gradcheck runs our kernels, not fast ones),
// so the vector builds do not instantiate it.
template <typename F> FASTCNN_HOST_INLINE void dispatch_dtype(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::kFloat32: return f(TypeTag<float>{});
    case Dtype::kFloat16: return f(TypeTag<Half>{});
    case Dtype::kBFloat16: return f(TypeTag<BFloat16>{});
    case Dtype::kFloat64:
#if FASTCNN_WITH_DOUBLE
      return f(TypeTag<double>{});
#else
      break;
#endif
  }
  throw std::logic_error("fastcnn: this build of the kernel has no such dtype");
}

// Calls f(std::integral_constant<int, K>{}) for the K of the list that equals value; throws naming `what` on a miss.
template <int... K, typename F> FASTCNN_HOST_INLINE void dispatch_int(const char* what, int value, F&& f) {
  const bool hit = ((value == K ? (f(std::integral_constant<int, K>{}), true) : false) || ...);
  if (hit) return;
  char message[96];  // no std::string: its templates would be compiled for this instruction set, and shared by the linker with the others
  std::snprintf(message, sizeof message, "fastcnn: no specialisation for this %s", what);
  throw std::logic_error(message);
}

template <typename F> FASTCNN_HOST_INLINE void dispatch_bool(bool value, F&& f) {
  if (value) f(std::true_type{});
  else f(std::false_type{});
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
