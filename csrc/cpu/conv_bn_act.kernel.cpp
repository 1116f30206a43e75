// SPDX-License-Identifier: Apache-2.0
// Pointwise convolution on the matrix product of gemm.h. Scale, shift, residual and activation are applied while a tile
// of sums is in L1.
//
// channels_last: pixels are broadcast over panels of output channels, which every thread packs for itself. A thread's
// pixels go by in blocks, so that a block's input and output stay in L2 while all panels run over it.
// NCHW: weights are broadcast over panels of pixels. A panel that only one or two tiles will read is not worth a copy
// and is read in place.
#include "conv_bn_act.h"

#include "../common/dispatch.h"
#include "gemm.h"
#include "parallel.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {
namespace {

constexpr int64_t kBlockBytes = 512 * 1024;  // of a channels_last block's input and output, kept in L2

template <typename T> FASTCNN_INLINE T* at(T* optional, int64_t offset) {
  return optional == nullptr ? nullptr : optional + offset;
}

// Where a panel's finished tiles go.
template <typename S> struct Target {
  const Accumulator<S>* scale;  // of the panel's first channel (channels_last), of row 0 (NCHW); null: 1
  const Accumulator<S>* shift;  // null: 0
  const S* residual;
  S* y;
  int64_t ldy;
  int vectors;
  int64_t columns;  // valid ones, at most vectors * kLanes
};

template <typename S>
using StoreFunction = void (*)(const Target<S>&, const Accumulator<S>* tile, int64_t first_row, int64_t rows);

template <typename S, typename F, bool kWhole>
FASTCNN_INLINE void store_vector(const S* residual, S* y, VecOf<S> sum, VecOf<S> scale, VecOf<S> shift, int lanes) {
  VecOf<S> value = fma(sum, scale, shift);
  if (residual != nullptr) value = value + (kWhole ? VecOf<S>::load(residual) : VecOf<S>::load(residual, lanes));
  value = F()(value);
  if (kWhole) value.store(y);
  else value.store(y, lanes);
}

// kChannelLanes: output channels run along the vectors (channels_last), else along the rows.
template <typename S, typename F, bool kChannelLanes>
void store_tile(const Target<S>& to, const Accumulator<S>* tile, int64_t first_row, int64_t rows) {
  using V = VecOf<S>;
  for (int v = 0; v < to.vectors; ++v) {
    const int64_t column = v * V::kLanes;
    const int lanes = int(to.columns - column < V::kLanes ? to.columns - column : V::kLanes);
    V scale(1), shift(0);
    if (kChannelLanes && to.scale != nullptr) scale = V::load(to.scale + column, lanes);
    if (kChannelLanes && to.shift != nullptr) shift = V::load(to.shift + column, lanes);
    for (int64_t m = 0; m < rows; ++m) {
      const int64_t offset = (first_row + m) * to.ldy + column;
      if (!kChannelLanes && to.scale != nullptr) scale = V(to.scale[first_row + m]);
      if (!kChannelLanes && to.shift != nullptr) shift = V(to.shift[first_row + m]);
      const S* residual = at(to.residual, offset);
      const V sum = V::load(tile + (m * to.vectors + v) * V::kLanes);
      if (lanes == V::kLanes) store_vector<S, F, true>(residual, to.y + offset, sum, scale, shift, lanes);
      else store_vector<S, F, false>(residual, to.y + offset, sum, scale, shift, lanes);
    }
  }
}

// Input rows (pixels) as the broadcast operand: converted, and gathered where the convolution is strided.
template <typename S> void gather_pixels(const PointwiseArgs& args, int64_t first, int64_t count, Accumulator<S>* out) {
  using V = VecOf<S>;
  const S* x = static_cast<const S*>(args.x);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t pixel = first + i;
    const int64_t wo = pixel % args.Wo, ho = pixel / args.Wo % args.Ho, n = pixel / args.Wo / args.Ho;
    const S* from = x + ((n * args.H + ho * args.stride_h) * args.W + wo * args.stride_w) * args.x_stride;
    int64_t c = 0;
    for (; c + V::kLanes <= args.C; c += V::kLanes) V::load(from + c).store(out + i * args.C + c);
    if (c < args.C) V::load(from + c, int(args.C - c)).store(out + i * args.C + c, int(args.C - c));
  }
}

template <typename S> void run_channels_last(const PointwiseArgs& args, StoreFunction<S> store) {
  using A = Accumulator<S>;
  constexpr int64_t kLanes = Vec<A>::kLanes;
  constexpr double kPackingCycles = 4.5;
  const int64_t C = args.C, O = args.O, pixels = args.N * args.Ho * args.Wo;
  const bool in_place = sizeof(S) == sizeof(A) && args.stride_h == 1 && args.stride_w == 1;
  const int64_t row_bytes = int64_t(sizeof(A)) * (C + O);
  const int64_t wanted = kBlockBytes / row_bytes;
  const int64_t block = wanted < 64 ? 64 : wanted;
  const GemmSplit split = choose_split(pixels, ceil_div(O, kLanes), kPackingCycles, useful_threads(pixels * O * C));
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
                             static_cast<S*>(args.y) + from * O + channel, O, vectors, columns};
          gemm_panel(rows, in_place ? args.x_stride : C, int64_t(1), count, panel, width, vectors, C, partial,
                     [&](const A* tile, int64_t row, int64_t height) { store(to, tile, row, height); });
        }
      }
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

template <typename S> void run_nchw(const PointwiseArgs& args, StoreFunction<S> store) {
  using A = Accumulator<S>;
  constexpr int64_t kLanes = Vec<A>::kLanes;
  constexpr double kPackingCycles = 2.5;
  constexpr int64_t kTilesInPlace = 2;
  const int64_t C = args.C, O = args.O, HW = args.Ho * args.Wo;
  const bool dense = args.stride_h == 1 && args.stride_w == 1;
  const Panels panels(ceil_div(HW, kLanes));
  const int64_t units = args.N * panels.count;
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
        else if (sizeof(S) == sizeof(A) && columns == width && rows <= kTilesInPlace * tile_rows(vectors))
          b = reinterpret_cast<const A*>(image) + first, ldb = HW;
        else pack_rows<S, A>(image + first, HW, columns, vectors, C, packed);
        const int64_t start = (n * O + first_row) * HW + first;
        const Target<S> to{at(static_cast<const A*>(args.scale), first_row),
                           at(static_cast<const A*>(args.shift), first_row),
                           at(static_cast<const S*>(args.residual), start),
                           static_cast<S*>(args.y) + start, HW, vectors, columns};
        gemm_panel(static_cast<const A*>(args.weight) + first_row * C, C, int64_t(1), rows, b, ldb, vectors, C, partial,
                   [&](const A* tile, int64_t row, int64_t height) { store(to, tile, row, height); });
      }
    }
  });
}

}  // namespace

void pointwise_forward_kernel(const PointwiseArgs& args) {
  dispatch_dtype(args.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    StoreFunction<S> store = nullptr;
    dispatch_activation(args.activation, [&](auto functor) {
      using F = decltype(functor);
      store = args.layout == Layout::kNHWC ? store_tile<S, F, true> : store_tile<S, F, false>;
    });
    if (args.layout == Layout::kNHWC) run_channels_last<S>(args, store);
    else run_nchw<S>(args, store);
  });
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
