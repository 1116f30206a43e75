// SPDX-License-Identifier: Apache-2.0
// What the NCHW kernels share: a zero-padded copy of some rows of one channel, split by stride so that every tap of the
// kernel reads consecutive elements.
#pragma once

#include "../common/shape.h"
#include "rows.h"
#include "scratch.h"
#include "simd.h"
#include "unroll.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {

// Elements that whole-vector loops may touch past the end of a scratch.
template <typename A> constexpr int kSlack = 8 * Vec<A>::kLanes;

// Rows [ho, ho + rows) of the output need input rows ho * Sh - pad_top + [0, (rows - 1) * Sh + (kH - 1) * Dh]. Padded
// row p goes to phase p % Sh, row p / Sh; columns alike. Then output (r, wo) and tap (kh, kw) meet at offset(kh, kw) +
// r * pitch + wo whatever the stride and dilation, and a run of outputs, over the end of a row too, is a run of inputs.
struct PhasePlane {
  int64_t phases_h, phases_w;  // those that a tap reads
  int64_t reach_h;             // rows beyond the last output row
  int64_t pitch;               // elements a row
  int64_t rows;                // output rows at most
  int64_t phase_size;

  FASTCNN_INLINE PhasePlane(const ConvGeometry& g, int64_t wanted_elements) {
    const int64_t span_h = (g.kH - 1) * g.dilation_h, span_w = (g.kW - 1) * g.dilation_w;
    phases_h = span_h + 1 < g.stride_h ? span_h + 1 : g.stride_h;
    phases_w = span_w + 1 < g.stride_w ? span_w + 1 : g.stride_w;
    reach_h = span_h / g.stride_h;
    pitch = g.Wo + span_w / g.stride_w;
    const int64_t fitting = wanted_elements / (phases_h * phases_w * pitch) - reach_h;
    rows = fitting < 1 ? 1 : fitting > g.Ho ? g.Ho : fitting;
    const int64_t blocks = ceil_div(g.Ho, rows);
    rows = ceil_div(g.Ho, blocks);
    phase_size = (rows + reach_h) * pitch;
  }
  // with room past the last row for whole vectors
  template <typename A> FASTCNN_INLINE int64_t size() const { return phases_h * phases_w * phase_size + kSlack<A>; }
  FASTCNN_INLINE int64_t offset(const ConvGeometry& g, int64_t kh, int64_t kw) const {
    const int64_t h = kh * g.dilation_h, w = kw * g.dilation_w;
    return ((h % g.stride_h) * phases_w + w % g.stride_w) * phase_size + h / g.stride_h * pitch + w / g.stride_w;
  }

  // Copies what `count` output rows need of one [H, W] plane x. The plane was zero before its first load, and every
  // load leaves its padding columns zero; only rows outside x are cleared again.
  template <typename S>
  FASTCNN_INLINE void load(const ConvGeometry& g, const S* x, int64_t ho, int64_t count, Accumulator<S>* plane) const {
    const int64_t sw = g.stride_w;
    // the first column of phase b that lies in x, and how many do
    const auto first_of = [&](int64_t b) { return b < g.pad_left ? ceil_div(g.pad_left - b, sw) : 0; };
    const auto count_of = [&](int64_t b) {
      const int64_t inside = g.W + g.pad_left - b, end = inside > 0 ? ceil_div(inside, sw) : 0, first = first_of(b);
      return end < first ? 0 : (end < pitch ? end : pitch) - (first < pitch ? first : pitch);
    };
    const int64_t first = first_of(0), copied = count_of(0);
    const bool pairs = sw == 2 && phases_w == 2 && g.pad_left >= 0;
    const int64_t odd_phase = g.pad_left & 1 ? 0 : 1;  // where the odd columns of x go
    const int64_t evens = pairs ? count_of(1 - odd_phase) : 0, odds = pairs ? count_of(odd_phase) : 0;
    const int64_t even_at = pairs ? (1 - odd_phase) * phase_size + first_of(1 - odd_phase) : 0;
    const int64_t odd_at = pairs ? odd_phase * phase_size + first_of(odd_phase) : 0;
    const int64_t used = g.W < evens + odds                        ? g.W
                         : 2 * (evens > odds ? evens : odds) < g.W ? 2 * (evens > odds ? evens : odds)
                                                                   : g.W;
    for (int64_t a = 0; a < phases_h; ++a) {
      int64_t ih = ho * g.stride_h + a - g.pad_top;
      Accumulator<S>* row = plane + a * phases_w * phase_size;
      for (int64_t r = 0; r < count + reach_h; ++r, ih += g.stride_h, row += pitch) {
        if (ih < 0 || ih >= g.H) {
          for (int64_t b = 0; b < phases_w; ++b) fill_zero(row + b * phase_size, pitch);
          continue;
        }
        const S* source = x + ih * g.W;
        if (sw == 1) {
          if (copied > 0) widen_row(source + first - g.pad_left, row + first, copied);
        } else if (pairs) {
          split_row(source, used, row + even_at, evens, row + odd_at, odds);
        } else {
          for (int64_t b = 0; b < phases_w; ++b) {
            const int64_t start = first_of(b), n = count_of(b);
            const S* from = source + start * sw + b - g.pad_left;
            for (int64_t j = 0; j < n; ++j) row[b * phase_size + start + j] = to_accumulator(from[j * sw]);
          }
        }
      }
    }
  }
};

template <int kTaps, int kVectors, typename A> FASTCNN_INLINE void correlate_group(const A* src, const int64_t* offset,
                                                                                   const A* weight, int64_t taps,
                                                                                   A start, A* dst) {
  using V = Vec<A>;
  V sum[kVectors];
  unroll<kVectors>([&](auto u) FASTCNN_UNROLLED { sum[u] = V(start); });
  const int64_t n = kTaps > 0 ? kTaps : taps;
  for (int64_t t = 0; t < n; ++t) {
    const V w(weight[t]);
    const A* p = src + offset[t];
    unroll<kVectors>([&](auto u) FASTCNN_UNROLLED { sum[u] = fma(V::load(p + u * V::kLanes), w, sum[u]); });
  }
  unroll<kVectors>([&](auto u) FASTCNN_UNROLLED { sum[u].store(dst + u * V::kLanes); });
}

// dst[i] = start + sum over t of weight[t] * src[offset[t] + i]. i runs to count rounded up to whole vectors: src and
// dst have that much room. Four vectors cover the latency of the FMA; no group is left with one unless it is alone.
template <int kTaps, typename A> FASTCNN_INLINE void correlate(const A* src, const int64_t* offset, const A* weight,
                                                               int64_t taps, A start, A* dst, int64_t count) {
  constexpr int kLanes = Vec<A>::kLanes;
  int64_t left = ceil_div(count, kLanes);
  for (; left > 6; left -= 4, src += 4 * kLanes, dst += 4 * kLanes)
    correlate_group<kTaps, 4>(src, offset, weight, taps, start, dst);
  switch (left) {
    case 1:
      return correlate_group<kTaps, 1>(src, offset, weight, taps, start, dst);
    case 2:
      return correlate_group<kTaps, 2>(src, offset, weight, taps, start, dst);
    case 3:
      return correlate_group<kTaps, 3>(src, offset, weight, taps, start, dst);
    case 4:
      return correlate_group<kTaps, 4>(src, offset, weight, taps, start, dst);
    case 5:
      return correlate_group<kTaps, 5>(src, offset, weight, taps, start, dst);
    case 6:
      return correlate_group<kTaps, 6>(src, offset, weight, taps, start, dst);
  }
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
