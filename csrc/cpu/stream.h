// SPDX-License-Identifier: Apache-2.0
// Results too large for the caches, written past them. An ordinary store to memory that is not at hand reads its line
// first, a third of the traffic of a pass that reads as much as it writes, and waits for it. A streaming store wants
// whole vectors on their own alignment: it serves results whose rows are multiples of a cache line.
#pragma once

#include "simd.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {

// Of y, `rows` of row_bytes each: as large as most of the L2 of two cores, and every row on a line of its own.
FASTCNN_INLINE bool is_streamed(const void* y, int64_t row_bytes, int64_t rows) {
#if defined(__AVX2__)
  constexpr int64_t kLeast = int64_t(3) << 20, kLine = 64;
  return row_bytes % kLine == 0 && reinterpret_cast<uintptr_t>(y) % kLine == 0 && row_bytes * rows >= kLeast;
#else
  (void)y, (void)row_bytes, (void)rows;
  return false;
#endif
}

// value.store(y) past the caches; y lies on a multiple of the vector.
template <typename A, typename S> FASTCNN_INLINE void stream(Vec<A> value, S* y) {
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 4) return _mm512_stream_ps(y, value.v);
#elif defined(__AVX2__)
  if constexpr (sizeof(S) == 4) return _mm256_stream_ps(y, value.v);
#endif
  value.store(y);
}

// To be called by a thread that streamed, before another one may read.
FASTCNN_INLINE void stream_fence() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
