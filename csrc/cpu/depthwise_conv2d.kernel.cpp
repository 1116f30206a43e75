// SPDX-License-Identifier: Apache-2.0
// Depthwise kH x kW convolution, forward, fused scale + shift + residual + activation.
//
// NHWC: a vector is kLanes channels. A tile is kStrip outputs along W by kRows along H; it loads each of its input vectors once and adds it to
// every output that it belongs to, so 3x3 of stride 1 takes 3 loads an output instead of 9. 8 sums in registers hide the latency of the FMA;
// the 9 weights of 3x3 stay in registers beside them (AVX-512), of a larger kernel one or two rows at a time. A thread walks along W with one
// channel vector and the kH + kRows - 1 input rows of all its channels stay in L2: x is read from memory once, y written once. At a border
// a column outside the input is read from a vector of zeros and a row outside is skipped: no padded copy, and the sums keep their order.
// Channels: the last vector starts at C - kLanes and computes a few channels twice, to the same bits, instead of masking; below kLanes
// channels the general tile masks.
//
// NCHW: a vector is kLanes outputs along W. Rows are copied, padded and split by stride, to a scratch of kPlaneElements (depthwise_conv2d_plane.h);
// then one loop over the taps serves every kernel size, stride and dilation, and small maps fill their vectors across row ends.
#include "depthwise_conv2d.h"

#include "../common/dispatch.h"
#include "depthwise_conv2d_plane.h"
#include "parallel.h"
#include "simd.h"
#include "unroll.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {
namespace {

constexpr int64_t kGrainMacs = 1 << 17;    // per thread: some 4 us of work, what waking a thread costs
constexpr int64_t kPlaneElements = 6144;   // half of a 48 KiB L1 in float
constexpr int kRowGroup = 4;               // NCHW: output rows summed side by side
constexpr int64_t kChunkBlocks = 16;       // channel vectors whose packed weights a thread holds (9 KiB for 3x3 on AVX-512)

int64_t grain_of(int64_t macs_per_item) { return macs_per_item > 0 ? ceil_div(kGrainMacs, macs_per_item) : 1; }

// Out of line: its register use must not spill the sums of the tiles, and the cheap activations do not come here.
template <typename V> __attribute__((noinline)) V slow_activation(V x, Activation kind) {
  V y = x;
  dispatch_activation(kind, [&](auto functor) { y = functor(x); });
  return y;
}

template <int kCount, typename V> FASTCNN_INLINE void activate(V (&sum)[kCount], Activation kind) {
  const auto each = [&](auto functor) FASTCNN_UNROLLED { unroll<kCount>([&](auto i) FASTCNN_UNROLLED { sum[i] = functor(sum[i]); }); };
  switch (kind) {
    case Activation::kIdentity: return;
    case Activation::kRelu: return each(Relu());
    case Activation::kRelu6: return each(Relu6());
    case Activation::kHardSwish: return each(HardSwish());
    default: each([&](V v) { return slow_activation(v, kind); });
  }
}

// ---- NHWC

template <typename S> struct Nhwc {
  const ConvGeometry& g;
  Activation activation;
  const S* x;         // image n, first channel of the block
  const S* residual;  // alike, or null
  S* y;
  const Accumulator<S>* packed;  // shift, then the taps, kLanes each
  int lanes;                     // channels to touch, below kLanes only in the general tile
};

template <typename S> constexpr int kZeroLanes = VecOf<S>::kLanes;
template <typename S> alignas(64) const S kZeros[kZeroLanes<S>] = {};

// sum[j * kStrip + s] is output (ho + j, wo + s); beyond `rows`, or `columns` when kShort, it does not exist.
template <bool kPartial, bool kShort, int kRows, int kStrip, typename S>
FASTCNN_INLINE void finish(const Nhwc<S>& job, VecOf<S> (&sum)[kRows * kStrip], int64_t ho, int64_t wo, int64_t columns) {
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
    if constexpr (kPartial) sum[i].store(job.y + at(i), job.lanes);
    else sum[i].store(job.y + at(i));
  });
}

template <typename S, int K, int kStride> struct UnrolledTile {
  using V = VecOf<S>;
  static constexpr int kRows = 2;
  static constexpr int kStrip = 4;
  static constexpr int kColumns = (kStrip - 1) * kStride + K;   // input columns a strip touches
  static constexpr int kInputRows = kStride + K;
  static_assert(kRows * kStrip >= 8, "two FMA ports of latency 4 need 8 independent sums");
  static_assert(kRows * (kStrip + K) + 1 <= 32, "sums, two rows of weights and an input vector fit the AVX-512 registers");

  // One input row; it is row `r` of the window of output row ho, kUpper, and row r - kStride of that of ho + 1, kLower.
  template <bool kEdge, bool kUpper, bool kLower>
  static FASTCNN_INLINE void add_row(const Nhwc<S>& job, V (&sum)[kRows * kStrip], int r, const S* row, int64_t iw) {
    const Accumulator<S>* weight = job.packed + (1 + r * K) * V::kLanes;
    V upper[K], lower[K];
    unroll<K>([&](auto kw) FASTCNN_UNROLLED {
      if constexpr (kUpper) upper[kw] = V::load(weight + kw * V::kLanes);
      if constexpr (kLower) lower[kw] = V::load(weight + (kw - kStride * K) * V::kLanes);
    });
    unroll<kColumns>([&](auto c) FASTCNN_UNROLLED {
      const bool inside = !kEdge || (iw + c >= 0 && iw + c < job.g.W);
      const V v = V::load(inside ? row + c * job.g.C : kZeros<S>);
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
    int r = first;
    for (; r < last && r < kStride; ++r, row += g.W * g.C) add_row<kEdge, true, false>(job, sum, r, row, iw);
    for (; r < last && r < K; ++r, row += g.W * g.C) add_row<kEdge, true, true>(job, sum, r, row, iw);
    for (; r < last; ++r, row += g.W * g.C) add_row<kEdge, false, true>(job, sum, r, row, iw);
    finish<false, kEdge, kRows, kStrip>(job, sum, ho, wo, g.Wo - wo);
  }

  static void rows(const Nhwc<S>& job, int64_t ho) {
    const ConvGeometry& g = job.g;
    for (int64_t wo = 0; wo < g.Wo; wo += kStrip) {
      const int64_t iw = wo * kStride - g.pad_left;
      if (iw >= 0 && iw + kColumns <= g.W && wo + kStrip <= g.Wo) tile<false>(job, ho, wo);
      else tile<true>(job, ho, wo);
    }
  }
};

// Any kernel size, stride and dilation; with kPartial also fewer channels than a vector has lanes.
template <typename S, bool kPartial> struct GeneralTile {
  using V = VecOf<S>;
  static constexpr int kRows = 1;
  static constexpr int kStrip = 4;

  static void rows(const Nhwc<S>& job, int64_t ho) {
    const ConvGeometry& g = job.g;
    for (int64_t wo = 0; wo < g.Wo; wo += kStrip) {
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
  }
};

template <typename S> void pack(const DepthwiseArgs& args, int64_t first_channel, int lanes, Accumulator<S>* packed) {
  using A = Accumulator<S>;
  constexpr int kLanes = VecOf<S>::kLanes;
  const int64_t taps = args.geometry.kH * args.geometry.kW;
  const A* scale = static_cast<const A*>(args.scale);
  const A* shift = static_cast<const A*>(args.shift);
  for (int l = 0; l < kLanes; ++l) {
    const int64_t o = first_channel + l;
    packed[l] = l < lanes && shift != nullptr ? shift[o] : A(0);
    const S* weight = static_cast<const S*>(args.weight) + o * taps;
    const A factor = l < lanes && scale != nullptr ? scale[o] : A(1);
    for (int64_t t = 0; t < taps; ++t)
      packed[(1 + t) * kLanes + l] = l < lanes ? to_accumulator(weight[args.flip ? taps - 1 - t : t]) * factor : A(0);
  }
}

template <typename S, typename Tile> void run_nhwc(const DepthwiseArgs& args) {
  using A = Accumulator<S>;
  constexpr int kLanes = VecOf<S>::kLanes;
  const ConvGeometry& g = args.geometry;
  const int64_t blocks = ceil_div(g.C, kLanes);
  const int64_t chunks = blocks > kChunkBlocks ? blocks / kChunkBlocks : 1;  // all but a single one hold two blocks or more
  const int64_t row_blocks = ceil_div(g.Ho, Tile::kRows);
  const int64_t taps = g.kH * g.kW, block_size = (1 + taps) * kLanes;
  const int lanes = g.C < kLanes ? int(g.C) : kLanes;
  // a chunk is outermost: its weights are packed once a thread
  const int64_t grain = grain_of(Tile::kRows * g.Wo * taps * ceil_div(blocks, chunks) * kLanes);
  parallel_for(chunks * g.N * row_blocks, grain, [&](int64_t begin, int64_t end) {
    const Scratch<A> packed(ceil_div(blocks, chunks) * block_size);
    int64_t packed_chunk = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t chunk = item / (g.N * row_blocks), n = item / row_blocks % g.N, ho = item % row_blocks * Tile::kRows;
      const int64_t first = chunk * blocks / chunks, last = (chunk + 1) * blocks / chunks;
      const auto channel = [&](int64_t block) { return block * kLanes <= g.C - lanes ? block * kLanes : g.C - lanes; };
      if (chunk != packed_chunk)
        for (int64_t block = first; block < last; ++block) pack<S>(args, channel(block), lanes, packed + (block - first) * block_size);
      packed_chunk = chunk;
      for (int64_t block = first; block < last; ++block) {
        const int64_t c = channel(block), out = n * g.Ho * g.Wo * g.C + c;
        const S* residual = static_cast<const S*>(args.residual);
        const Nhwc<S> job{g, args.activation, static_cast<const S*>(args.x) + n * g.H * g.W * g.C + c,
                          residual == nullptr ? nullptr : residual + out, static_cast<S*>(args.y) + out,
                          packed + (block - first) * block_size, lanes};
        Tile::rows(job, ho);
      }
    }
  });
}

// float on AVX-512 and AVX2 only: eighteen more copies of the tile, for half types and the plain build, would triple what the file takes to compile.
template <typename S> constexpr bool kHasUnrolledTiles = sizeof(S) == sizeof(float) && VecOf<S>::kLanes >= 8;

template <typename S> void forward_nhwc(const DepthwiseArgs& args) {
  const ConvGeometry& g = args.geometry;
  if (g.C < VecOf<S>::kLanes) return run_nhwc<S, GeneralTile<S, true>>(args);
  if constexpr (kHasUnrolledTiles<S>) {
    const bool unrolled = g.kH == g.kW && (g.kH == 3 || g.kH == 5 || g.kH == 7) && g.stride_h == g.stride_w && g.stride_h <= 2 &&
                          g.dilation_h == 1 && g.dilation_w == 1;
    if (unrolled)
      return dispatch_int<3, 5, 7>("kernel size", int(g.kH), [&](auto kernel) {
        dispatch_int<1, 2>("stride", int(g.stride_h), [&](auto stride) { run_nhwc<S, UnrolledTile<S, kernel(), stride()>>(args); });
      });
  }
  run_nhwc<S, GeneralTile<S, false>>(args);
}

// ---- NCHW

template <typename S> using RowFunction = void (*)(const Accumulator<S>* sum, const S* residual, S* y, int64_t count);

template <typename S, typename F> void store_row(const Accumulator<S>* sum, const S* residual, S* y, int64_t count) {
  using V = VecOf<S>;
  const F functor;
  int64_t i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes) {
    V v = V::load(sum + i);
    if (residual != nullptr) v = v + V::load(residual + i);
    functor(v).store(y + i);
  }
  if (i < count) {
    const int n = int(count - i);
    V v = V::load(sum + i, n);
    if (residual != nullptr) v = v + V::load(residual + i, n);
    functor(v).store(y + i, n);
  }
}

// Sums of `rows` output rows, from a plane in the scratch to rows of sums.
template <typename A> using SumFunction = void (*)(const PhasePlane& plane, const A* input, const int64_t* offset, const A* weight, int64_t taps,
                                                   A start, A* sums, int64_t sums_pitch, int64_t rows, int64_t columns);

template <int kTaps, typename A>
void sum_flat(const PhasePlane& plane, const A* input, const int64_t* offset, const A* weight, int64_t taps, A start, A* sums, int64_t, int64_t rows,
              int64_t columns) {
  correlate<kTaps, A>(input, offset, weight, taps, start, sums, (rows - 1) * plane.pitch + columns);
}

// kRowGroup output rows side by side: an input row that several of them need is loaded once, (kRowGroup + K - 1) K / kRowGroup loads a sum for
// stride 1 where the flat form takes K^2, and most of those straddle a cache line. The weights stay in registers (AVX-512).
template <int K, int kStride, typename A>
void sum_rows(const PhasePlane& plane, const A* input, const int64_t*, const A* weight, int64_t, A start, A* sums, int64_t sums_pitch, int64_t rows,
              int64_t columns) {
  using V = Vec<A>;
  static_assert(K * K + kRowGroup + 1 <= 32, "weights, sums and an input vector fit the AVX-512 registers");
  V w[K * K];
  unroll<K * K>([&](auto t) FASTCNN_UNROLLED { w[t] = V(weight[t]); });
  for (int64_t r = 0; r < rows; r += kRowGroup)
    for (int64_t i = 0; i < columns; i += V::kLanes) {
      V sum[kRowGroup] = {V(start), V(start), V(start), V(start)};
      unroll<(kRowGroup - 1) * kStride + K>([&](auto p) FASTCNN_UNROLLED {
        const A* row = input + (p % kStride) * kStride * plane.phase_size + (r + p / kStride) * plane.pitch + i;
        unroll<K>([&](auto kw) FASTCNN_UNROLLED {
          const V v = V::load(row + (kw % kStride) * plane.phase_size + kw / kStride);
          unroll<kRowGroup>([&](auto j) FASTCNN_UNROLLED {
            constexpr int kh = p - j * kStride;
            if constexpr (kh >= 0 && kh < K) sum[j] = fma(v, w[kh * K + kw], sum[j]);
          });
        });
      });
      unroll<kRowGroup>([&](auto j) FASTCNN_UNROLLED { sum[j].store(sums + (r + j) * sums_pitch + i); });
    }
}

// Row by row where that fills the vectors, else over row ends.
template <typename A> SumFunction<A> choose_sum(const ConvGeometry& g, bool* by_rows) {
  constexpr int kLanes = Vec<A>::kLanes;
  *by_rows = g.kH == g.kW && (g.kH == 3 || g.kH == 5) && g.stride_h == g.stride_w && g.stride_h <= 2 && g.dilation_h == 1 && g.dilation_w == 1 &&
             g.Wo * 3 >= ceil_div(g.Wo, kLanes) * kLanes * 2;
  SumFunction<A> found = g.kH * g.kW == 9 ? &sum_flat<9, A> : g.kH * g.kW == 25 ? &sum_flat<25, A> : &sum_flat<0, A>;
  if (*by_rows)
    dispatch_int<3, 5>("kernel size", int(g.kH), [&](auto kernel) {
      dispatch_int<1, 2>("stride", int(g.stride_h), [&](auto stride) { found = &sum_rows<kernel(), stride(), A>; });
    });
  return found;
}

template <typename S> void forward_nchw(const DepthwiseArgs& args) {
  using A = Accumulator<S>;
  const ConvGeometry& g = args.geometry;
  RowFunction<S> store = nullptr;
  dispatch_activation(args.activation, [&](auto functor) { store = &store_row<S, decltype(functor)>; });
  bool by_rows = false;
  const SumFunction<A> sum = choose_sum<A>(g, &by_rows);
  const PhasePlane plane(g, kPlaneElements);
  constexpr int kLanes = VecOf<S>::kLanes;
  const int64_t sums_pitch = by_rows ? ceil_div(g.Wo, kLanes) * kLanes : plane.pitch;
  const int64_t taps = g.kH * g.kW, blocks = ceil_div(g.Ho, plane.rows), m = g.O / g.C;
  const A* scale = static_cast<const A*>(args.scale);
  const A* shift = static_cast<const A*>(args.shift);
  parallel_for(g.N * g.O * blocks, grain_of(plane.rows * g.Wo * taps), [&](int64_t begin, int64_t end) {
    const Scratch<A> input(plane.size<A>()), sums(ceil_div(plane.rows, kRowGroup) * kRowGroup * sums_pitch + kSlack<A>), weight(taps);
    const Scratch<int64_t> offset(taps);
    fill_zero<A>(input, plane.size<A>());
    for (int64_t t = 0; t < taps; ++t) offset[t] = plane.offset(g, t / g.kW, t % g.kW);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t no = item / blocks, ho = (item - no * blocks) * plane.rows, o = no % g.O;
      const int64_t rows = g.Ho - ho < plane.rows ? g.Ho - ho : plane.rows;
      const A factor = scale == nullptr ? A(1) : scale[o];
      const S* w = static_cast<const S*>(args.weight) + o * taps;
      for (int64_t t = 0; t < taps; ++t) weight[t] = to_accumulator(w[args.flip ? taps - 1 - t : t]) * factor;
      plane.load(g, static_cast<const S*>(args.x) + no / m * g.H * g.W, ho, rows, input);
      sum(plane, input, offset, weight, taps, shift == nullptr ? A(0) : shift[o], sums, sums_pitch, rows, g.Wo);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t at = (no * g.Ho + ho + r) * g.Wo;
        store(sums + r * sums_pitch, args.residual == nullptr ? nullptr : static_cast<const S*>(args.residual) + at,
              static_cast<S*>(args.y) + at, g.Wo);
      }
    }
  });
}

}  // namespace

void depthwise_conv2d_kernel(const DepthwiseArgs& args) {
  dispatch_dtype(args.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    if (args.geometry.layout == Layout::kNHWC) forward_nhwc<S>(args);
    else forward_nchw<S>(args);
  });
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
