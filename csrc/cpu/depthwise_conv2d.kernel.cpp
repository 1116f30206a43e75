// SPDX-License-Identifier: Apache-2.0
// Depthwise kH x kW convolution, forward, fused scale + shift + residual + activation.
//
// NHWC: a vector is kLanes channels. A tile (depthwise_conv2d_tile.h) is 4 outputs along W by 2 along H; it loads each
// of its input vectors once and adds it to every output that it belongs to, so 3x3 of stride 1 takes 3 loads an output
// instead of 9. 8 sums in registers hide the latency of the FMA; beside them stand the weights of the one or two kernel
// rows that meet the input row at hand. A thread takes all channels of a tile before the next one along W: memory is
// read in runs of 4 to 9 pixels, and the overlap with the last tile and the last rows is still in L1 and L2 (the other
// order, one channel vector along the whole row, measured 1.2 to 1.5 times slower from L3 on). At a border a column
// outside the input is skipped, and so is a row: no padded copy, and the sums keep their order. The last channel vector
// starts at C - kLanes and computes a few channels twice, to the same bits, instead of masking; below kLanes channels
// the general tile masks.
//
// NCHW: a band of rows of kLanes channels is transposed to that form, in L2, computed by the same tiles and transposed
// back: 2 log2(kLanes) / kLanes shuffles an element, less than the unaligned loads and half-empty vectors that rows of
// W cost. With fewer channels than kLanes, or a depth multiplier, a vector is kLanes outputs along W: rows are copied,
// padded and split by stride, to a scratch of kPlaneElements (depthwise_conv2d_plane.h), where every tap reads
// consecutive elements.
#include "depthwise_conv2d.h"

#include "../common/dispatch.h"
#include "depthwise_conv2d_plane.h"
#include "depthwise_conv2d_tile.h"
#include "parallel.h"
#include "simd.h"
#include "unroll.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {
namespace {

constexpr int64_t kGrainMacs = 1 << 17;             // per thread: some 4 us of work, what waking a thread costs
constexpr int64_t kPlaneElements = 6144;            // half of a 48 KiB L1 in float
constexpr int64_t kBandBytes = int64_t(256) << 10;  // NCHW: of a band of rows, transposed: it stays in L2
constexpr int64_t kBandLeast = 4;                   // rows of output
constexpr int64_t kChunkBlocks = 64;  // channel vectors whose packed weights a thread holds, 40 KiB for 3x3 on AVX-512
constexpr int64_t kFarInput = 2 << 20;  // bytes of x that are not expected in L2

int64_t grain_of(int64_t macs_per_item) { return macs_per_item > 0 ? ceil_div(kGrainMacs, macs_per_item) : 1; }

// The shift and the taps of kLanes channels, kLanes each.
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

template <typename S> void forward_nhwc(const DepthwiseArgs& args) {
  using A = Accumulator<S>;
  constexpr int kLanes = VecOf<S>::kLanes;
  const ConvGeometry& g = args.geometry;
  const Tile<S> tile = choose_tile<S>(g);
  const int64_t blocks = ceil_div(g.C, kLanes), row_blocks = ceil_div(g.Ho, tile.rows);
  // Few chunks read memory in long runs; but the rows of a small map are too few for the threads. All but a single
  // chunk hold two blocks or more, so the channels computed twice belong to one thread.
  const int64_t threads = thread_count(), wanted = g.N * row_blocks < 4 * threads ? threads : 1;
  const int64_t more = blocks / kChunkBlocks > wanted ? blocks / kChunkBlocks : wanted;
  const int64_t chunks = blocks < 4 ? 1 : more < blocks / 2 ? more : blocks / 2;
  const int64_t taps = g.kH * g.kW, block_size = (1 + taps) * kLanes;
  const int lanes = g.C < kLanes ? int(g.C) : kLanes;
  const S* residual = static_cast<const S*>(args.residual);
  const auto channel = [&](int64_t block) { return block * kLanes <= g.C - lanes ? block * kLanes : g.C - lanes; };
  const bool far = g.N * g.H * g.W * g.C * int64_t(sizeof(S)) > kFarInput;
  const bool streams = is_streamed(args.y, g.C * int64_t(sizeof(S)), g.N * g.Ho * g.Wo);
  // a chunk is outermost: its weights are packed once a thread
  const int64_t grain = grain_of(tile.rows * g.Wo * taps * ceil_div(blocks, chunks) * kLanes);
  parallel_for(chunks * g.N * row_blocks, grain, [&](int64_t begin, int64_t end) {
    const Scratch<A> packed(ceil_div(blocks, chunks) * block_size);
    int64_t packed_chunk = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t chunk = item / (g.N * row_blocks), n = item / row_blocks % g.N;
      const int64_t first = chunk * blocks / chunks, last = (chunk + 1) * blocks / chunks;
      if (chunk != packed_chunk)
        for (int64_t block = first; block < last; ++block)
          pack<S>(args, channel(block), lanes, packed + (block - first) * block_size);
      packed_chunk = chunk;
      const S* x = static_cast<const S*>(args.x) + n * g.H * g.W * g.C;
      const int64_t out = n * g.Ho * g.Wo * g.C;
      for (int64_t wo = 0; wo < g.Wo; wo += tile.columns)
        for (int64_t block = first; block < last; ++block) {
          const int64_t c = channel(block);
          const A* weight = packed + (block - first) * block_size;
          tile.strip({g, args.activation, x + c, residual == nullptr ? nullptr : residual + out + c,
                      static_cast<S*>(args.y) + out + c, weight, lanes, far, streams},
                     item % row_blocks * tile.rows, wo);
        }
    }
    if (streams) stream_fence();
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

template <typename S> void forward_nchw_rows(const DepthwiseArgs& args) {
  using A = Accumulator<S>;
  const ConvGeometry& g = args.geometry;
  RowFunction<S> store = nullptr;
  dispatch_activation(args.activation, [&](auto functor) { store = &store_row<S, decltype(functor)>; });
  const PhasePlane plane(g, kPlaneElements);
  const int64_t taps = g.kH * g.kW, blocks = ceil_div(g.Ho, plane.rows), m = g.O / g.C;
  const A* scale = static_cast<const A*>(args.scale);
  const A* shift = static_cast<const A*>(args.shift);
  parallel_for(g.N * g.O * blocks, grain_of(plane.rows * g.Wo * taps), [&](int64_t begin, int64_t end) {
    const Scratch<A> input(plane.size<A>()), sums(plane.rows * plane.pitch + kSlack<A>), weight(taps);
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
      const A start = shift == nullptr ? A(0) : shift[o];
      const int64_t count = (rows - 1) * plane.pitch + g.Wo;
      if (taps == 9)
        correlate<9, A>(input, offset, weight, taps, start, sums, count);
      else
        correlate<0, A>(input, offset, weight, taps, start, sums, count);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t at = (no * g.Ho + ho + r) * g.Wo;
        store(sums + r * plane.pitch, args.residual == nullptr ? nullptr : static_cast<const S*>(args.residual) + at,
              static_cast<S*>(args.y) + at, g.Wo);
      }
    }
  });
}

// Rows become columns: kLanes rounds of interleaving the first half of the vectors with the second.
template <typename A> FASTCNN_INLINE void transpose(Vec<A> (&v)[Vec<A>::kLanes]) {
  constexpr int kLanes = Vec<A>::kLanes;
  for (int round = 1; round < kLanes; round *= 2) {
    Vec<A> mixed[kLanes];
    unroll<kLanes / 2>([&](auto i)
                           FASTCNN_UNROLLED { interleave(v[i], v[i + kLanes / 2], &mixed[2 * i], &mixed[2 * i + 1]); });
    unroll<kLanes>([&](auto i) FASTCNN_UNROLLED { v[i] = mixed[i]; });
  }
}

// to[p][l] = from[l * plane + p], kLanes planes of which `pixels` are taken.
template <typename S> void gather_planes(const S* from, int64_t plane, int64_t pixels, Accumulator<S>* to) {
  using V = VecOf<S>;
  for (int64_t p = 0; p < pixels; p += V::kLanes) {
    const int n = pixels - p < V::kLanes ? int(pixels - p) : V::kLanes;
    V v[V::kLanes];
    unroll<V::kLanes>([&](auto l) FASTCNN_UNROLLED {
      v[l] = n == V::kLanes ? V::load(from + l * plane + p) : V::load(from + l * plane + p, n);
    });
    transpose(v);
    unroll<V::kLanes>([&](auto l) FASTCNN_UNROLLED {
      if (l < n) v[l].store(to + (p + l) * V::kLanes);
    });
  }
}

// to[l * plane + p] = from[p][l] for l from `first` on.
template <typename S> void scatter_planes(const Accumulator<S>* from, int64_t plane, int64_t pixels, int first, S* to) {
  using V = VecOf<S>;
  for (int64_t p = 0; p < pixels; p += V::kLanes) {
    const int n = pixels - p < V::kLanes ? int(pixels - p) : V::kLanes;
    V v[V::kLanes];
    unroll<V::kLanes>([&](auto l) FASTCNN_UNROLLED {
      if (l < n) v[l] = V::load(from + (p + l) * V::kLanes);
    });
    transpose(v);
    unroll<V::kLanes>([&](auto l) FASTCNN_UNROLLED {
      if (l < first) return;
      if (n == V::kLanes)
        v[l].store(to + l * plane + p);
      else
        v[l].store(to + l * plane + p, n);
    });
  }
}

// Output rows of a band: its input, residual and output, transposed, take kBandBytes.
template <typename S> int64_t band_rows(const ConvGeometry& g) {
  const int64_t row = (g.stride_h * g.W + 2 * g.Wo) * VecOf<S>::kLanes * int64_t(sizeof(Accumulator<S>));
  const int64_t fitting = kBandBytes / row;
  return fitting >= g.Ho ? g.Ho : fitting < kBandLeast ? kBandLeast : fitting;
}

template <typename S> void forward_nchw_transposed(const DepthwiseArgs& args) {
  using A = Accumulator<S>;
  constexpr int kLanes = VecOf<S>::kLanes;
  const ConvGeometry& g = args.geometry;
  const int64_t blocks = ceil_div(g.C, kLanes), taps = g.kH * g.kW, span = (g.kH - 1) * g.dilation_h + 1;
  const int64_t bands = ceil_div(g.Ho, band_rows<S>(g)), rows = ceil_div(g.Ho, bands);
  ConvGeometry vector = g;  // of one band of kLanes channels
  vector.C = vector.O = kLanes;
  const Tile<A> tile = choose_tile<A>(vector);
  const int64_t input_rows = (rows - 1) * g.stride_h + span < g.H ? (rows - 1) * g.stride_h + span : g.H;
  parallel_for(blocks * g.N * bands, grain_of(rows * g.Wo * taps * kLanes), [&](int64_t begin, int64_t end) {
    const Scratch<A> packed((1 + taps) * kLanes), x(input_rows * g.W * kLanes), y(rows * g.Wo * kLanes);
    const Scratch<A> residual(args.residual == nullptr ? 0 : rows * g.Wo * kLanes);
    ConvGeometry band = vector;
    int64_t packed_block = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t block = item / (g.N * bands), n = item / bands % g.N, ho = item % bands * rows;
      const int64_t c = block * kLanes <= g.C - kLanes ? block * kLanes : g.C - kLanes, plane = n * g.C + c;
      if (block != packed_block) pack<S>(args, c, kLanes, packed);
      packed_block = block;
      band.Ho = g.Ho - ho < rows ? g.Ho - ho : rows;
      const int64_t top = ho * g.stride_h - g.pad_top, bottom = top + (band.Ho - 1) * g.stride_h + span;
      const int64_t first = top < 0 ? 0 : top < g.H ? top : g.H, last = bottom < g.H ? bottom : g.H;
      band.H = last > first ? last - first : 0;
      band.pad_top = first - top;
      gather_planes(static_cast<const S*>(args.x) + (plane * g.H + first) * g.W, g.H * g.W, band.H * g.W, x);
      const A* added = nullptr;
      if (args.residual != nullptr) {
        gather_planes(static_cast<const S*>(args.residual) + (plane * g.Ho + ho) * g.Wo, g.Ho * g.Wo, band.Ho * g.Wo,
                      residual);
        added = residual;
      }
      for (int64_t r = 0; r < band.Ho; r += tile.rows)
        for (int64_t wo = 0; wo < g.Wo; wo += tile.columns)
          tile.strip({band, args.activation, x, added, y, packed, kLanes, false, false}, r, wo);
      scatter_planes(y, g.Ho * g.Wo, band.Ho * g.Wo, int(block * kLanes - c),
                     static_cast<S*>(args.y) + (plane * g.Ho + ho) * g.Wo);
    }
  });
}

template <typename S> void forward_nchw(const DepthwiseArgs& args) {
  const ConvGeometry& g = args.geometry;
  if (g.C == g.O && g.C >= VecOf<S>::kLanes)
    forward_nchw_transposed<S>(args);
  else
    forward_nchw_rows<S>(args);
}

}  // namespace

void depthwise_conv2d_kernel(const DepthwiseArgs& args) {
  dispatch_dtype(args.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    if (args.geometry.layout == Layout::kNHWC)
      forward_nhwc<S>(args);
    else
      forward_nchw<S>(args);
  });
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
