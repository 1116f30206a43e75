// SPDX-License-Identifier: Apache-2.0
// What the NCHW kernels share: scratch memory, and a zero-padded copy of some rows of one channel, split by stride so that every tap of the
// kernel reads consecutive elements.
#pragma once

#include <cstdlib>
#include <new>

#include "../common/shape.h"
#include "simd.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {

// Uninitialised, on a cache line; freed at the end of the scope.
template <typename A> class Scratch {
 public:
  explicit Scratch(int64_t count) {
    constexpr size_t kLine = 64;
    memory_ = static_cast<A*>(std::aligned_alloc(kLine, (size_t(count) * sizeof(A) / kLine + 1) * kLine));
    if (memory_ == nullptr) throw std::bad_alloc();
  }
  ~Scratch() { std::free(memory_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  operator A*() const { return memory_; }

 private:
  A* memory_;
};

template <typename A> FASTCNN_INLINE void fill_zero(A* p, int64_t count) {
  if (count > 0) std::memset(p, 0, size_t(count) * sizeof(A));
}

// dst[i] = src[i] in the accumulator's type.
template <typename S> FASTCNN_INLINE void widen_row(const S* src, Accumulator<S>* dst, int64_t count) {
  using V = VecOf<S>;
  int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes) V::load(src + i).store(dst + i);
  if (i < count) V::load(src + i, int(count - i)).store(dst + i, int(count - i));
}

template <typename S> constexpr bool is_accumulator = sizeof(S) == sizeof(Accumulator<S>);

// dst[j] = src[j * stride]; src is read up to its last taken element only.
template <typename A> FASTCNN_INLINE void take_every(const A* __restrict src, int64_t stride, A* __restrict dst, int64_t count) {
  if (stride == 2) {
    for (int64_t j = 0; j < count; ++j) dst[j] = src[2 * j];
  } else {
    for (int64_t j = 0; j < count; ++j) dst[j] = src[j * stride];
  }
}

// Rows [ho, ho + rows) of the output need input rows ho * Sh - pad_top + [0, (rows - 1) * Sh + (kH - 1) * Dh]. Padded row p goes to phase p % Sh,
// row p / Sh; columns alike. Then output (r, wo) and tap (kh, kw) meet at offset(kh, kw) + r * pitch + wo whatever the stride and dilation, and
// a run of outputs, over the end of a row too, is a run of inputs.
struct PhasePlane {
  int64_t phases_h, phases_w;  // those that a tap reads
  int64_t reach_h;             // rows beyond the last output row
  int64_t pitch;               // elements a row
  int64_t rows;                // output rows at most

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
  }
  FASTCNN_INLINE int64_t phase_size() const { return (rows + reach_h) * pitch; }
  FASTCNN_INLINE int64_t size() const { return phases_h * phases_w * phase_size(); }
  FASTCNN_INLINE int64_t offset(const ConvGeometry& g, int64_t kh, int64_t kw) const {
    const int64_t h = kh * g.dilation_h, w = kw * g.dilation_w;
    return ((h % g.stride_h) * phases_w + w % g.stride_w) * phase_size() + h / g.stride_h * pitch + w / g.stride_w;
  }

  // x is one [H, W] plane; `wide` holds W elements and is used for half types only.
  template <typename S>
  FASTCNN_INLINE void load(const ConvGeometry& g, const S* x, int64_t ho, int64_t count, Accumulator<S>* plane, Accumulator<S>* wide) const {
    using A = Accumulator<S>;
    for (int64_t r = 0; r < count + reach_h; ++r) {
      for (int64_t a = 0; a < phases_h; ++a) {
        const int64_t ih = (ho + r) * g.stride_h + a - g.pad_top;
        A* row = plane + a * phases_w * phase_size() + r * pitch;
        if (ih < 0 || ih >= g.H) {
          for (int64_t b = 0; b < phases_w; ++b) fill_zero(row + b * phase_size(), pitch);
          continue;
        }
        const S* source = x + ih * g.W;
        const A* from;
        if constexpr (is_accumulator<S>) {
          from = source;
        } else {
          if (g.stride_w > 1) widen_row(source, wide, g.W);
          from = wide;
        }
        for (int64_t b = 0; b < phases_w; ++b) {
          A* to = row + b * phase_size();
          // column j holds input column j * Sw + b - pad_left
          const int64_t shift = g.pad_left - b;
          int64_t first = shift > 0 ? ceil_div(shift, g.stride_w) : 0;
          int64_t last = g.W + shift > 0 ? ceil_div(g.W + shift, g.stride_w) : 0;
          first = first < pitch ? first : pitch;
          last = last < first ? first : last < pitch ? last : pitch;
          fill_zero(to, first);
          const int64_t start = first * g.stride_w - shift;
          if (g.stride_w == 1) widen_row(source + start, to + first, last - first);
          else take_every(from + start, g.stride_w, to + first, last - first);
          fill_zero(to + last, pitch - last);
        }
      }
    }
  }
};

// dst[i] = start + sum over t of weight[t] * src[offset[t] + i]. i runs to count rounded up to whole vectors: src and dst have that much room.
template <int kTaps, typename A>
FASTCNN_INLINE void correlate(const A* src, const int64_t* offset, const A* weight, int64_t taps, A start, A* dst, int64_t count) {
  using V = Vec<A>;
  constexpr int kVectors = 4;  // that many sums cover the latency of an FMA on two ports
  const int64_t n = kTaps > 0 ? kTaps : taps;
  int64_t i = 0;
  for (; i + (kVectors - 1) * V::kLanes < count; i += kVectors * V::kLanes) {
    V sum[kVectors] = {V(start), V(start), V(start), V(start)};
    for (int64_t t = 0; t < n; ++t) {
      const V w(weight[t]);
      const A* p = src + offset[t] + i;
      for (int u = 0; u < kVectors; ++u) sum[u] = fma(V::load(p + u * V::kLanes), w, sum[u]);
    }
    for (int u = 0; u < kVectors; ++u) sum[u].store(dst + i + u * V::kLanes);
  }
  for (; i < count; i += V::kLanes) {
    V sum(start);
    for (int64_t t = 0; t < n; ++t) sum = fma(V::load(src + offset[t] + i), V(weight[t]), sum);
    sum.store(dst + i);
  }
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
