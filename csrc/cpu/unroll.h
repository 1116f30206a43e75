// SPDX-License-Identifier: Apache-2.0
// Loops whose index is a constant in the body: an array of vectors indexed by it is split into registers before the
// optimiser gives up on it (GCC unrolls a plain loop only after that).
#pragma once

#include <type_traits>
#include <utility>

#include "../common/namespace.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {

template <int... I, typename F> FASTCNN_INLINE void unroll(std::integer_sequence<int, I...>, F&& body) {
  (body(std::integral_constant<int, I>{}), ...);
}

// body(integral_constant<int, 0>) ... body(integral_constant<int, kCount - 1>). Write FASTCNN_UNROLLED after the
// parameters of the lambda.
template <int kCount, typename F> FASTCNN_INLINE void unroll(F&& body) {
  unroll(std::make_integer_sequence<int, kCount>{}, body);
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn

#define FASTCNN_UNROLLED __attribute__((always_inline))
