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

namespace fastcnn {
inline namespace FASTCNN_ISA {
namespace {

constexpr int64_t kGrainMacs = 1 << 17;    // per thread: some 4 us of work, what waking a thread costs
constexpr int64_t kPlaneElements = 6144;   // half of a 48 KiB L1 in float
constexpr int64_t kChunkBlocks = 16;       // channel vectors whose packed weights a thread holds (9 KiB for 3x3 on AVX-512)

int64_t grain_of(int64_t macs_per_item) { return macs_per_item > 0 ? ceil_div(kGrainMacs, macs_per_item) : 1; }

// Out of line: its register use must not spill the sums of the tiles, and the cheap activations do not come here.
template <typename V> __attribute__((noinline)) V slow_activation(V x, Activation kind) {
  V y = x;
  dispatch_activation(kind, [&](auto functor) { y = functor(x); });
  return y;
}

template <int kCount, typename V> FASTCNN_INLINE void activate(V (&sum)[kCount], Activation kind) {
  switch (kind) {
    case Activation::kIdentity: return;
    case Activation::kRelu:
      for (V& v : sum) v = Relu()(v);
      return;
    case Activation::kRelu6:
      for (V& v : sum) v = Relu6()(v);
      return;
    case Activation::kHardSwish:
      for (V& v : sum) v = HardSwish()(v);
      return;
    default:
      for (V& v : sum) v = slow_activation(v, kind);
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

template <bool kPartial, int kStrip, typename S>
FASTCNN_INLINE void finish_row(const Nhwc<S>& job, VecOf<S> (&sum)[kStrip], int64_t ho, int64_t wo, int count) {
  using V = VecOf<S>;
  const int64_t base = (ho * job.g.Wo + wo) * job.g.O;
  if (job.residual != nullptr)
    for (int s = 0; s < kStrip; ++s)
      if (s < count) {
        const S* r = job.residual + base + s * job.g.O;
        sum[s] = sum[s] + (kPartial ? V::load(r, job.lanes) : V::load(r));
      }
  activate(sum, job.activation);
  for (int s = 0; s < kStrip; ++s)
    if (s < count) {
      if constexpr (kPartial) sum[s].store(job.y + base + s * job.g.O, job.lanes);
      else sum[s].store(job.y + base + s * job.g.O);
    }
}

template <typename S, int K, int kStride> struct UnrolledTile {
  using V = VecOf<S>;
  static constexpr int kRows = kStride == 1 ? 2 : 1;
  static constexpr int kStrip = 4;
  static constexpr int kColumns = (kStrip - 1) * kStride + K;   // input columns a strip touches
  static constexpr int kInputRows = (kRows - 1) * kStride + K;
  static constexpr bool kHoldWeights = K == 3;
  static_assert(kRows * kStrip <= 8, "the sums, a row of weights for each and an input must fit 32 registers");

  template <bool kEdge> static FASTCNN_INLINE void tile(const Nhwc<S>& job, const V* held, int64_t ho, int64_t wo) {
    const ConvGeometry& g = job.g;
    const int64_t ih = ho * kStride - g.pad_top, iw = wo * kStride - g.pad_left;
    V sum[kRows][kStrip];
    for (int j = 0; j < kRows; ++j)
      for (int s = 0; s < kStrip; ++s) sum[j][s] = V::load(job.packed);
#pragma GCC unroll 16
    for (int r = 0; r < kInputRows; ++r) {
      if (ih + r < 0 || ih + r >= g.H) continue;
      const S* row = job.x + (ih + r) * g.W * g.C;
#pragma GCC unroll 16
      for (int c = 0; c < kColumns; ++c) {
        const bool inside = !kEdge || (iw + c >= 0 && iw + c < g.W);
        const V v = V::load(inside ? row + (iw + c) * g.C : kZeros<S>);
#pragma GCC unroll 2
        for (int j = 0; j < kRows; ++j) {
          const int kh = r - j * kStride;
          if (kh < 0 || kh >= K) continue;
#pragma GCC unroll 4
          for (int s = 0; s < kStrip; ++s) {
            const int kw = c - s * kStride;
            if (kw < 0 || kw >= K) continue;
            const V w = kHoldWeights ? held[kh * K + kw] : V::load(job.packed + (1 + kh * K + kw) * V::kLanes);
            sum[j][s] = fma(v, w, sum[j][s]);
          }
        }
      }
    }
    const int count = kEdge && g.Wo - wo < kStrip ? int(g.Wo - wo) : kStrip;
    for (int j = 0; j < kRows; ++j)
      if (ho + j < g.Ho) finish_row<false>(job, sum[j], ho + j, wo, count);
  }

  static void rows(const Nhwc<S>& job, int64_t ho) {
    const ConvGeometry& g = job.g;
    V held[kHoldWeights ? K * K : 1];
    if constexpr (kHoldWeights)
      for (int t = 0; t < K * K; ++t) held[t] = V::load(job.packed + (1 + t) * V::kLanes);
    for (int64_t wo = 0; wo < g.Wo; wo += kStrip) {
      const int64_t iw = wo * kStride - g.pad_left;
      if (iw >= 0 && iw + kColumns <= g.W && wo + kStrip <= g.Wo) tile<false>(job, held, ho, wo);
      else tile<true>(job, held, ho, wo);
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
      V sum[kStrip];
      for (V& v : sum) v = V::load(job.packed);
      for (int64_t kh = 0; kh < g.kH; ++kh) {
        const int64_t ih = ho * g.stride_h + kh * g.dilation_h - g.pad_top;
        if (ih < 0 || ih >= g.H) continue;
        for (int64_t kw = 0; kw < g.kW; ++kw) {
          const V w = V::load(job.packed + (1 + kh * g.kW + kw) * V::kLanes);
          for (int s = 0; s < kStrip; ++s) {
            const int64_t iw = (wo + s) * g.stride_w + kw * g.dilation_w - g.pad_left;
            const S* p = s < count && iw >= 0 && iw < g.W ? job.x + (ih * g.W + iw) * g.C : kZeros<S>;
            sum[s] = fma(kPartial ? V::load(p, job.lanes) : V::load(p), w, sum[s]);
          }
        }
      }
      finish_row<kPartial>(job, sum, ho, wo, count);
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

template <typename S> void forward_nhwc(const DepthwiseArgs& args) {
  const ConvGeometry& g = args.geometry;
  if (g.C < VecOf<S>::kLanes) return run_nhwc<S, GeneralTile<S, true>>(args);
  const bool unrolled = g.kH == g.kW && (g.kH == 3 || g.kH == 5 || g.kH == 7) && g.stride_h == g.stride_w && g.stride_h <= 2 &&
                        g.dilation_h == 1 && g.dilation_w == 1;
  if (!unrolled) return run_nhwc<S, GeneralTile<S, false>>(args);
  dispatch_int<3, 5, 7>("kernel size", int(g.kH), [&](auto kernel) {
    dispatch_int<1, 2>("stride", int(g.stride_h), [&](auto stride) { run_nhwc<S, UnrolledTile<S, kernel(), stride()>>(args); });
  });
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

template <typename S> void forward_nchw(const DepthwiseArgs& args) {
  using A = Accumulator<S>;
  const ConvGeometry& g = args.geometry;
  RowFunction<S> store = nullptr;
  dispatch_activation(args.activation, [&](auto functor) { store = &store_row<S, decltype(functor)>; });
  const PhasePlane plane(g, kPlaneElements);
  const int64_t taps = g.kH * g.kW, blocks = ceil_div(g.Ho, plane.rows), m = g.O / g.C;
  const A* scale = static_cast<const A*>(args.scale);
  const A* shift = static_cast<const A*>(args.shift);
  constexpr int kSlack = 4 * VecOf<S>::kLanes;  // whole vectors past the last row
  parallel_for(g.N * g.O * blocks, grain_of(plane.rows * g.Wo * taps), [&](int64_t begin, int64_t end) {
    const Scratch<A> input(plane.size() + kSlack), sums(plane.rows * plane.pitch + kSlack), weight(taps), wide(g.W);
    const Scratch<int64_t> offset(taps);
    fill_zero<A>(input + plane.size(), kSlack);
    for (int64_t t = 0; t < taps; ++t) offset[t] = plane.offset(g, t / g.kW, t % g.kW);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t no = item / blocks, ho = item % blocks * plane.rows, n = no / g.O, o = no % g.O;
      const int64_t rows = g.Ho - ho < plane.rows ? g.Ho - ho : plane.rows;
      const A factor = scale == nullptr ? A(1) : scale[o];
      const S* w = static_cast<const S*>(args.weight) + o * taps;
      for (int64_t t = 0; t < taps; ++t) weight[t] = to_accumulator(w[args.flip ? taps - 1 - t : t]) * factor;
      plane.load(g, static_cast<const S*>(args.x) + (n * g.C + o / m) * g.H * g.W, ho, rows, input, wide);
      const A start = shift == nullptr ? A(0) : shift[o];
      const int64_t count = (rows - 1) * plane.pitch + g.Wo;
      if (taps == 9) correlate<9, A>(input, offset, weight, taps, start, sums, count);
      else correlate<0, A>(input, offset, weight, taps, start, sums, count);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t at = (no * g.Ho + ho + r) * g.Wo;
        store(sums + r * plane.pitch, args.residual == nullptr ? nullptr : static_cast<const S*>(args.residual) + at,
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
