// SPDX-License-Identifier: Apache-2.0
// The sum over the HW pixels of each of N * C planes, for pooling and for the gradient of a scale.
//
// Float sums of at most kPlaneChunk values a lane, added up in double: the error does not grow with the number of pixels. The split is by shape.
#pragma once

#include "global_avg_pool.h"
#include "lanes.h"
#include "parallel.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {

constexpr int64_t kPlaneChunk = 128;          // NHWC: pixels whose float sums run in one go
constexpr int64_t kPlaneGrain = 32768;        // elements that are worth a thread
constexpr int64_t kPlaneBlock = 256;          // NHWC: channels whose sums stay in L1, a run of 1 KB of float in memory

// term(lanes, i): the vector of terms at element i of x. out(plane, total) once per plane n * C + c.
template <typename S, typename Term, typename Out>
FASTCNN_INLINE void plane_sums_nchw(int64_t planes, int64_t HW, Term&& term, Out&& out) {
  using V = VecOf<S>;
  constexpr int kSlots = 4;
  constexpr int64_t kChunk = kPlaneChunk * kSlots * V::kLanes / 2;
  parallel_for(planes, ceil_div(kPlaneGrain, HW), [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) {
      double total = 0;
      for (int64_t p = 0; p < HW; p += kChunk) {
        V sum[kSlots];
        over_lanes_unrolled<V, kSlots>(HW - p < kChunk ? HW - p : kChunk, [&](int64_t i, auto lanes, int slot) {
          sum[slot] = sum[slot] + term(lanes, plane * HW + p + i);  // lanes outside a short vector load as 0
        });
        total += double(((sum[0] + sum[1]) + (sum[2] + sum[3])).sum());
      }
      out(plane, total);
    }
  });
}

template <typename S, typename Term, typename Out>
FASTCNN_INLINE void plane_sums_nhwc(int64_t N, int64_t C, int64_t HW, double* scratch, Term&& term, Out&& out) {
  using A = Accumulator<S>;
  using V = VecOf<S>;
  constexpr int kRows = 8;  // pixels that share one load and store of the sums
  const int64_t segments = plane_segments(Layout::kNHWC, C, HW), length = ceil_div(HW, segments);
  parallel_for(N * segments, ceil_div(kPlaneGrain, length * C), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item / segments, first = (item - n * segments) * length;
      const int64_t last = first + length < HW ? first + length : HW;
      for (int64_t block = 0; block < C; block += kPlaneBlock) {
        const int64_t width = C - block < kPlaneBlock ? C - block : kPlaneBlock;
        A sum[kPlaneBlock];
        double total[kPlaneBlock];
        for (int64_t c = 0; c < width; ++c) total[c] = 0;
        for (int64_t p = first; p < last; p += kPlaneChunk) {
          const int64_t stop = p + kPlaneChunk < last ? p + kPlaneChunk : last;
          for (int64_t c = 0; c < width; ++c) sum[c] = A(0);
          int64_t pixel = p;
          for (; pixel + kRows <= stop; pixel += kRows) {
            const int64_t base = (n * HW + pixel) * C + block;
            over_lanes<V>(width, [&](int64_t c, auto lanes) {
              V even, odd;
              for (int r = 0; r < kRows; r += 2) {
                even = even + term(lanes, base + r * C + c);
                odd = odd + term(lanes, base + (r + 1) * C + c);
              }
              lanes.store(lanes.load(sum + c) + (even + odd), sum + c);
            });
          }
          for (; pixel < stop; ++pixel) {
            const int64_t base = (n * HW + pixel) * C + block;
            over_lanes<V>(width, [&](int64_t c, auto lanes) { lanes.store(lanes.load(sum + c) + term(lanes, base + c), sum + c); });
          }
          for (int64_t c = 0; c < width; ++c) total[c] += double(sum[c]);
        }
        for (int64_t c = 0; c < width; ++c) {
          if (segments == 1) out(n * C + block + c, total[c]);
          else scratch[item * C + block + c] = total[c];
        }
      }
    }
  });
  if (segments == 1) return;
  for (int64_t n = 0; n < N; ++n)
    for (int64_t c = 0; c < C; ++c) {
      double total = 0;
      for (int64_t segment = 0; segment < segments; ++segment) total += scratch[(n * segments + segment) * C + c];
      out(n * C + c, total);
    }
}

template <typename S, typename Term, typename Out>
FASTCNN_INLINE void plane_sums(Layout layout, int64_t N, int64_t C, int64_t HW, double* scratch, Term&& term, Out&& out) {
  if (layout == Layout::kNCHW) plane_sums_nchw<S>(N * C, HW, term, out);
  else plane_sums_nhwc<S>(N, C, HW, scratch, term, out);
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
