// SPDX-License-Identifier: Apache-2.0
// The NHWC tiles of the depthwise convolution: some outputs of one channel vector, from dense memory with g.C channels
// a pixel. The NCHW kernel of small maps runs them too, on a transposed copy with one vector of channels.
#pragma once

#include "../common/dispatch.h"
#include "../common/shape.h"
#include "any_activation.h"
#include "simd.h"
#include "stream.h"
#include "unroll.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {
namespace {

template <int kCount, typename V> FASTCNN_INLINE void activate(V (&sum)[kCount], Activation kind) {
  const auto each = [&](auto functor) FASTCNN_UNROLLED {
    unroll<kCount>([&](auto i) FASTCNN_UNROLLED { sum[i] = functor(sum[i]); });
  };
  switch (kind) {
    case Activation::kIdentity:
      return;
    case Activation::kRelu:
      return each(Relu());
    case Activation::kRelu6:
      return each(Relu6());
    case Activation::kHardSwish:
      return each(HardSwish());
    default:
      each(AnyActivation{kind});  // inline, their registers would spill the sums
  }
}

template <typename S> struct Nhwc {
  const ConvGeometry& g;
  Activation activation;
  const S* x;         // image n, first channel of the block
  const S* residual;  // alike, or null
  S* y;
  const Accumulator<S>* packed;  // shift, then the taps, kLanes each
  int lanes;                     // channels to touch, below kLanes only where C is
  bool far;                      // x comes from beyond L2
  bool streams;                  // y goes past the caches, see stream.h
};

template <typename S> constexpr int kZeroLanes = VecOf<S>::kLanes;
template <typename S> alignas(64) const S kZeros[kZeroLanes<S>] = {};

// sum[j * kStrip + s] is output (ho + j, wo + s); beyond `rows`, or `columns` when kShort, it does not exist.
template <bool kPartial, bool kShort, int kRows, int kStrip, typename S>
FASTCNN_INLINE void finish(const Nhwc<S>& job, VecOf<S> (&sum)[kRows * kStrip], int64_t ho, int64_t wo,
                           int64_t columns) {
  using V = VecOf<S>;
  const int64_t base = (ho * job.g.Wo + wo) * job.g.O, row = job.g.Wo * job.g.O, rows = job.g.Ho - ho;
  const auto exists = [&](int i) FASTCNN_UNROLLED { return i / kStrip < rows && (!kShort || i % kStrip < columns); };
  const auto at = [&](int i) FASTCNN_UNROLLED { return base + i / kStrip * row + i % kStrip * job.g.O; };
  if (job.residual != nullptr)
    unroll<kRows * kStrip>([&](auto i) FASTCNN_UNROLLED {
      const S* r = job.residual + at(i);
      if (exists(i)) sum[i] = sum[i] + (kPartial ? V::load(r, job.lanes) : V::load(r));
    });
  activate(sum, job.activation);
  unroll<kRows * kStrip>([&](auto i) FASTCNN_UNROLLED {
    if (!exists(i)) return;
    if constexpr (kPartial)
      sum[i].store(job.y + at(i), job.lanes);
    else if (job.streams)
      stream(sum[i], job.y + at(i));
    else
      sum[i].store(job.y + at(i));
  });
}

template <typename S, int K, int kStride, bool kPartial = false> struct UnrolledTile {
  using V = VecOf<S>;
  static constexpr int kRows = 2;
  static constexpr int kStrip = 4;
  static constexpr int kColumns = (kStrip - 1) * kStride + K;  // input columns a strip touches
  static constexpr int kInputRows = kStride + K;
  static_assert(kRows * kStrip >= 8, "two FMA ports of latency 4 need 8 independent sums");
  static_assert(kRows * (kStrip + K) + 1 <= 32,
                "sums, two rows of weights and an input vector fit the AVX-512 registers");

  // One input row; it is row `r` of the window of output row ho, kUpper, and row r - kStride of that of ho + 1, kLower.
  template <bool kEdge, bool kUpper, bool kLower> static FASTCNN_INLINE void add_row(const Nhwc<S>& job,
                                                                                     V (&sum)[kRows * kStrip], int r,
                                                                                     const S* row, unsigned inside) {
    const Accumulator<S>* weight = job.packed + (1 + r * K) * V::kLanes;
    V upper[K], lower[K];
    unroll<K>([&](auto kw) FASTCNN_UNROLLED {
      if constexpr (kUpper) upper[kw] = V::load(weight + kw * V::kLanes);
      if constexpr (kLower) lower[kw] = V::load(weight + (kw - kStride * K) * V::kLanes);
    });
    unroll<kColumns>([&](auto c) FASTCNN_UNROLLED {
      if (kEdge && !(inside >> c & 1)) return;
      const V v = kPartial ? V::load(row + c * job.g.C, job.lanes) : V::load(row + c * job.g.C);
      unroll<kStrip>([&](auto s) FASTCNN_UNROLLED {
        constexpr int kw = c - s * kStride;
        if constexpr (kw >= 0 && kw < K) {
          if constexpr (kUpper) sum[s] = fma(v, upper[kw], sum[s]);
          if constexpr (kLower) sum[kStrip + s] = fma(v, lower[kw], sum[kStrip + s]);
        }
      });
    });
  }

  template <bool kEdge> static FASTCNN_INLINE void tile(const Nhwc<S>& job, int64_t ho, int64_t wo) {
    const ConvGeometry& g = job.g;
    const int64_t ih = ho * kStride - g.pad_top, iw = wo * kStride - g.pad_left;
    const V shift = V::load(job.packed);
    V sum[kRows * kStrip] = {shift, shift, shift, shift, shift, shift, shift, shift};
    const int first = ih >= 0 ? 0 : -ih < kInputRows ? int(-ih) : kInputRows;
    const int last = g.H - ih >= kInputRows ? kInputRows : g.H - ih > 0 ? int(g.H - ih) : 0;
    const S* row = job.x + ((ih + first) * g.W + iw) * g.C;
    unsigned inside = 0;  // bit c: column iw + c lies in x
    if constexpr (kEdge)
      for (int c = 0; c < kColumns; ++c) inside |= unsigned(iw + c >= 0 && iw + c < g.W) << c;
    if (!job.streams)  // the stores at the end would wait for their lines
      unroll<kRows * kStrip>([&](auto i) FASTCNN_UNROLLED {
        __builtin_prefetch(job.y + ((ho + i / kStrip) * g.Wo + wo + i % kStrip) * g.O, 1);
      });
    int r = first;
    for (; r < last && r < kStride; ++r, row += g.W * g.C) add_row<kEdge, true, false>(job, sum, r, row, inside);
    for (; r < last && r < K; ++r, row += g.W * g.C) add_row<kEdge, true, true>(job, sum, r, row, inside);
    for (; r < last; ++r, row += g.W * g.C) add_row<kEdge, false, true>(job, sum, r, row, inside);
    if (kStride == 2 && job.far) {  // the rows of the next tile: all but K - 2 of its K + 2 are new
      const S* next = job.x + ((ih + kInputRows) * g.W + iw) * g.C;
      unroll<kRows * kStride * kStrip * kStride>([&](auto i) FASTCNN_UNROLLED {
        __builtin_prefetch(next + (i / (kStrip * kStride) * g.W + i % (kStrip * kStride)) * g.C, 0, 2);
      });
    }
    finish<kPartial, kEdge, kRows, kStrip>(job, sum, ho, wo, g.Wo - wo);
  }

  static void strip(const Nhwc<S>& job, int64_t ho, int64_t wo) {
    const int64_t iw = wo * kStride - job.g.pad_left;
    if (iw >= 0 && iw + kColumns <= job.g.W && wo + kStrip <= job.g.Wo)
      tile<false>(job, ho, wo);
    else
      tile<true>(job, ho, wo);
  }
};

// Any kernel size, stride and dilation; with kPartial also fewer channels than a vector has lanes.
template <typename S, bool kPartial> struct GeneralTile {
  using V = VecOf<S>;
  static constexpr int kRows = 1;
  static constexpr int kStrip = 4;

  static void strip(const Nhwc<S>& job, int64_t ho, int64_t wo) {
    const ConvGeometry& g = job.g;
    const int count = g.Wo - wo < kStrip ? int(g.Wo - wo) : kStrip;
    const V shift = V::load(job.packed);
    V sum[kStrip] = {shift, shift, shift, shift};
    for (int64_t kh = 0; kh < g.kH; ++kh) {
      const int64_t ih = ho * g.stride_h + kh * g.dilation_h - g.pad_top;
      if (ih < 0 || ih >= g.H) continue;
      for (int64_t kw = 0; kw < g.kW; ++kw) {
        const V w = V::load(job.packed + (1 + kh * g.kW + kw) * V::kLanes);
        unroll<kStrip>([&](auto s) FASTCNN_UNROLLED {
          const int64_t iw = (wo + s) * g.stride_w + kw * g.dilation_w - g.pad_left;
          const S* p = s < count && iw >= 0 && iw < g.W ? job.x + (ih * g.W + iw) * g.C : kZeros<S>;
          sum[s] = fma(kPartial ? V::load(p, job.lanes) : V::load(p), w, sum[s]);
        });
      }
    }
    finish<kPartial, true, kRows, kStrip>(job, sum, ho, wo, count);
  }
};

// The tile that serves a convolution, by function: one driver for all of them.
template <typename S> struct Tile {
  void (*strip)(const Nhwc<S>&, int64_t ho, int64_t wo);  // the tile whose first output is (ho, wo)
  int rows, columns;                                      // of outputs in a tile
};

template <typename T, typename S> Tile<S> tile_of() { return {&T::strip, T::kRows, T::kStrip}; }

// Every copy of the tile costs the build a second: none for the plain build; half types have 3x3 and 5x5 on AVX-512.
template <typename S, int K>
constexpr bool kUnrolled = sizeof(S) == sizeof(float) ? VecOf<S>::kLanes >= 8 : VecOf<S>::kLanes >= 16 && K < 7;

// Of half a vector and more the thin nets have some: the 8 channels of MobileNetV1 x0.25 on AVX-512.
template <typename S, int K>
constexpr bool kUnrolledPartial = K == 3 && sizeof(S) == sizeof(float) && VecOf<S>::kLanes >= 16;

template <typename S> Tile<S> choose_tile(const ConvGeometry& g) {
  const bool whole = g.C >= VecOf<S>::kLanes;
  Tile<S> found = whole ? tile_of<GeneralTile<S, false>, S>() : tile_of<GeneralTile<S, true>, S>();
  if (g.kH == g.kW && (g.kH == 3 || g.kH == 5 || g.kH == 7) && g.stride_h == g.stride_w && g.stride_h <= 2 &&
      g.dilation_h == 1 && g.dilation_w == 1)
    dispatch_int<3, 5, 7>("kernel size", int(g.kH), [&](auto kernel) {
      dispatch_int<1, 2>("stride", int(g.stride_h), [&](auto stride) {
        if (whole) {
          if constexpr (kUnrolled<S, kernel()>) found = tile_of<UnrolledTile<S, kernel(), stride()>, S>();
        } else if constexpr (kUnrolledPartial<S, kernel()>) {
          found = tile_of<UnrolledTile<S, kernel(), stride(), true>, S>();
        }
      });
    });
  return found;
}

}  // namespace
}  // namespace FASTCNN_ISA
}  // namespace fastcnn
