// SPDX-License-Identifier: Apache-2.0
// Pointwise convolution on the matrix product of gemm.h. Scale, shift, residual and the clamping activations end a tile
// in its registers, the others while its sums are in L1.
//
// channels_last: pixels are broadcast over panels of output channels, which every thread packs for itself. Threads
// share the pixels, so that each writes whole rows; few pixels they share by channels too, to pack less. A thread's
// pixels go by in blocks, so that a block's input and output stay in L2 while all panels run over it.
// NCHW: weights are broadcast over panels of pixels. A panel that only one or two tiles will read is not worth a copy
// and is read in place.
//
// A prologue on x runs where x is copied: on a block's pixels as they are gathered, on a panel once it is packed. With
// one, x is never read in place; the copy is in L2 when the product reads it.
#include "conv_bn_act.h"

#include "../common/dispatch.h"
#include "conv_bn_act_prologue.h"
#include "conv_bn_act_store.h"
#include "gemm.h"
#include "parallel.h"
#include "stream.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {
namespace {

constexpr int64_t kBlockBytes = 512 * 1024;  // of a channels_last block's input and output, kept in L2

// For a thread: with as many, packing all weights is little, and whole rows of y are better than parts of each.
constexpr int64_t kManyPixels = 256;

// Input rows (pixels) as the broadcast operand: converted, through the prologue, and gathered where the convolution is
// strided.
template <typename S> void gather_pixels(const PointwiseArgs& args, int64_t first, int64_t count, Accumulator<S>* out) {
  const S* x = static_cast<const S*>(args.x);
  dispatch_usual_activation(args.prologue.activation, [&](auto functor) {
    const PrologueOf<Accumulator<S>, decltype(functor)> prologue(args.prologue, functor);
    int64_t wo = first % args.Wo, ho = first / args.Wo % args.Ho, n = first / args.Wo / args.Ho;
    for (int64_t i = 0; i < count; ++i) {
      const S* from = x + ((n * args.H + ho * args.stride_h) * args.W + wo * args.stride_w) * args.x_stride;
      prologue.pixel(from, n, args.C, out + i * args.C);
      if (++wo < args.Wo) continue;
      wo = 0;
      if (++ho == args.Ho) ho = 0, ++n;
    }
  });
}

template <typename S> void run_channels_last(const PointwiseArgs& args, const Store<S>& store) {
  using A = Accumulator<S>;
  constexpr int64_t kLanes = Vec<A>::kLanes;
  constexpr double kPackingCycles = 4.5;
  const int64_t C = args.C, O = args.O, pixels = args.N * args.Ho * args.Wo;
  const bool in_place = sizeof(S) == sizeof(A) && args.stride_h == 1 && args.stride_w == 1 && !changes(args.prologue);
  const int64_t row_bytes = int64_t(sizeof(A)) * (C + O);
  const int64_t wanted = kBlockBytes / row_bytes;
  const int64_t block = wanted < 64 ? 64 : wanted;
  const int64_t threads = useful_threads(pixels * O * C);
  const GemmSplit split = pixels >= kManyPixels * threads
                              ? GemmSplit{threads, 1}
                              : choose_split(pixels, ceil_div(O, kLanes), kPackingCycles, threads);
  const bool streams = is_streamed(args.y, O * int64_t(sizeof(S)), pixels);
  parallel_for(split.rows * split.vectors, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t row_part = part / split.vectors, vector_part = part % split.vectors;
      const int64_t first_pixel = pixels * row_part / split.rows, last_pixel = pixels * (row_part + 1) / split.rows;
      const int64_t vectors = ceil_div(O, kLanes);
      const int64_t first_vector = vectors * vector_part / split.vectors;
      const Panels panels(vectors * (vector_part + 1) / split.vectors - first_vector);
      if (panels.vectors == 0 || first_pixel == last_pixel) continue;
      const int64_t blocks = ceil_div(last_pixel - first_pixel, block);
      const int64_t first_channel = first_vector * kLanes;
      const int64_t kept = (blocks > 1 ? panels.vectors : kMostVectors) * kLanes * C;  // one block: one panel at a time
      const int64_t copied = in_place ? 0 : block * C;
      const int64_t sums = partial_size<A>(block, C);
      Workspace memory(Workspace::bytes<A>(kept) + Workspace::bytes<A>(copied) + Workspace::bytes<A>(sums));
      A* packed = memory.take<A>(kept);
      A* gathered = memory.take<A>(copied);
      A* partial = memory.take<A>(sums);
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t from = first_pixel + (last_pixel - first_pixel) * b / blocks;
        const int64_t count = first_pixel + (last_pixel - first_pixel) * (b + 1) / blocks - from;
        const A* rows = gathered;
        if (in_place) rows = static_cast<const A*>(args.x) + from * args.x_stride;
        else gather_pixels<S>(args, from, count, gathered);
        for (int64_t p = 0; p < panels.count; ++p) {
          const int vectors = panels.width(p);
          const int64_t channel = first_channel + panels.begin(p) * kLanes;
          const int64_t width = vectors * kLanes, columns = O - channel < width ? O - channel : width;
          A* panel = blocks > 1 ? packed + panels.begin(p) * kLanes * C : packed;
          if (b == 0) pack_transposed(static_cast<const A*>(args.weight) + channel * C, C, columns, vectors, C, panel);
          const Target<S> to{at(static_cast<const A*>(args.scale), channel),
                             at(static_cast<const A*>(args.shift), channel),
                             at(static_cast<const S*>(args.residual), from * O + channel),
                             static_cast<S*>(args.y) + from * O + channel, O, vectors, columns, streams};
          multiply(Rows<A>{rows, in_place ? args.x_stride : C}, count, panel, width, C, partial, to, store);
        }
      }
      if (streams) stream_fence();
    }
  });
}

// A panel of pixels as the vector operand, gathered where the convolution is strided; lanes past `columns` stay
// unwritten.
template <typename S>
void gather_panel(const PointwiseArgs& args, const S* image, int64_t first, int64_t columns, int vectors,
                  Accumulator<S>* out) {
  using V = VecOf<S>;
  int64_t offset[kMostVectors * V::kLanes];
  for (int64_t i = 0; i < columns; ++i)
    offset[i] = (first + i) / args.Wo * args.stride_h * args.W + (first + i) % args.Wo * args.stride_w;
  for (int64_t c = 0; c < args.C; ++c)
    for (int64_t i = 0; i < columns; ++i)
      out[c * vectors * V::kLanes + i] = to_accumulator(image[c * args.H * args.W + offset[i]]);
}

template <typename S> void run_nchw(const PointwiseArgs& args, const Store<S>& store) {
  using A = Accumulator<S>;
  constexpr int64_t kLanes = Vec<A>::kLanes;
  constexpr double kPackingCycles = 2.5;
  constexpr int64_t kTilesInPlace = 2;
  const int64_t C = args.C, O = args.O, HW = args.Ho * args.Wo;
  const bool dense = args.stride_h == 1 && args.stride_w == 1, changed = changes(args.prologue);
  const Panels panels(ceil_div(HW, kLanes));
  const int64_t units = args.N * panels.count;
  const bool streams = is_streamed(args.y, HW * int64_t(sizeof(S)), args.N * O);
  const GemmSplit split = choose_split(O, units, kPackingCycles, useful_threads(args.N * HW * O * C));
  parallel_for(split.rows * split.vectors, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t row_part = part / split.vectors, unit_part = part % split.vectors;
      const int64_t first_row = O * row_part / split.rows, rows = O * (row_part + 1) / split.rows - first_row;
      const int64_t last_unit = units * (unit_part + 1) / split.vectors;
      if (rows == 0) continue;
      const int64_t panel_size = kMostVectors * kLanes * C;
      const int64_t sums = partial_size<A>(rows, C);
      Workspace memory(Workspace::bytes<A>(panel_size) + Workspace::bytes<A>(sums));
      A* packed = memory.take<A>(panel_size);
      A* partial = memory.take<A>(sums);
      for (int64_t unit = units * unit_part / split.vectors; unit < last_unit; ++unit) {
        const int64_t n = unit / panels.count, p = unit % panels.count;
        const int vectors = panels.width(p);
        const int64_t first = panels.begin(p) * kLanes, width = vectors * kLanes;
        const int64_t columns = HW - first < width ? HW - first : width;
        const S* image = static_cast<const S*>(args.x) + n * args.x_stride;
        const A* b = packed;
        int64_t ldb = width;
        if (!dense) gather_panel<S>(args, image, first, columns, vectors, packed);
        else if (sizeof(S) == sizeof(A) && !changed && columns == width && rows <= kTilesInPlace * tile_rows(vectors))
          b = reinterpret_cast<const A*>(image) + first, ldb = HW;
        else pack_rows<S, A>(image + first, HW, columns, vectors, C, packed);
        if (changed) change_panel<A>(args.prologue, n, C, vectors, packed);
        const int64_t start = (n * O + first_row) * HW + first;
        const Target<S> to{at(static_cast<const A*>(args.scale), first_row),
                           at(static_cast<const A*>(args.shift), first_row),
                           at(static_cast<const S*>(args.residual), start),
                           static_cast<S*>(args.y) + start, HW, vectors, columns, streams};
        multiply(Rows<A>{static_cast<const A*>(args.weight) + first_row * C, C}, rows, b, ldb, C, partial, to, store);
      }
      if (streams) stream_fence();
    }
  });
}

}  // namespace

void pointwise_forward_kernel(const PointwiseArgs& args) {
  dispatch_dtype(args.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    const Store<S> store = store_for<S>(args.activation, args.layout);
    if (args.layout == Layout::kNHWC) run_channels_last<S>(args, store);
    else run_nchw<S>(args, store);
  });
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
