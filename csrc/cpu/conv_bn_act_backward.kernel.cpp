// SPDX-License-Identifier: Apache-2.0
// Weight gradient of a pointwise convolution: grad_weight[o][c] = sum over pixels of grad[o] * x[c], on the matrix
// product of gemm.h.
//
// Output channels are the broadcast operand, read where they lie in either format; input channels run along the vectors
// (an NCHW panel is transposed while it is packed). The sum runs over chunks of pixels small enough for a panel to stay
// in L1; each chunk is summed in registers and then added to the result, so errors grow with the number of chunks, not
// of pixels. Slices of chunks go to threads and are added up in order at the end.
#include "conv_bn_act.h"

#include "../common/dispatch.h"
#include "gemm.h"
#include "parallel.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {
namespace {

// Part of the result that one task sums: rows are output channels, columns input channels, in one slice of the pixels.
template <typename S> struct Task {
  using A = Accumulator<S>;
  static constexpr int64_t kLanes = Vec<A>::kLanes;
  static constexpr int64_t kChunk = kSliceBytes / int64_t(sizeof(A)) / (kUsualVectors * kLanes);

  const PointwiseWeightArgs& args;
  int64_t first_row, rows, first_vector;
  Panels panels;
  A* sum;  // [O, C]
  static constexpr int64_t kPanel = kChunk * kMostVectors * kLanes, kTile = kMostRows * kMostVectors * kLanes;
  Workspace memory;
  A *grad, *packed, *partial;

  Task(const PointwiseWeightArgs& a, int64_t row, int64_t row_count, int64_t vector, int64_t vector_count, A* result)
      : args(a),
        first_row(row),
        rows(row_count),
        first_vector(vector),
        panels(vector_count),
        sum(result),
        memory(Workspace::bytes<A>(kChunk * row_count) + Workspace::bytes<A>(kPanel) + Workspace::bytes<A>(kTile)),
        grad(memory.take<A>(kChunk * row_count)),
        packed(memory.take<A>(kPanel)),
        partial(memory.take<A>(kTile)) {
    static_assert(kPanel * int64_t(sizeof(A)) <= kSliceBytes * 3 / 2, "gemm_panel does not slice a chunk");
  }

  // Pixels [pixel, pixel + count) of image n; channels_last counts pixels through all images, n = 0.
  void add_chunk(int64_t n, int64_t pixel, int64_t count, bool first) {
    const bool channels_last = args.layout == Layout::kNHWC;
    const S* g = static_cast<const S*>(args.grad) +
                 (channels_last ? pixel * args.O + first_row : (n * args.O + first_row) * args.HW + pixel);
    const S* x = static_cast<const S*>(args.x) + (channels_last ? pixel * args.C : n * args.C * args.HW + pixel);
    int64_t row_stride = channels_last ? 1 : args.HW, depth_stride = channels_last ? args.O : 1;
    const A* a = reinterpret_cast<const A*>(g);
    if constexpr (sizeof(S) != sizeof(A)) {
      const int64_t lines = channels_last ? count : rows, length = channels_last ? rows : count;
      convert(g, channels_last ? args.O : args.HW, lines, length, grad);
      row_stride = channels_last ? 1 : count, depth_stride = channels_last ? rows : 1;
      a = grad;
    }
    for (int64_t p = 0; p < panels.count; ++p) {
      const int vectors = panels.width(p);
      const int64_t width = vectors * kLanes, column = (first_vector + panels.begin(p)) * kLanes;
      const int64_t columns = args.C - column < width ? args.C - column : width;
      if (channels_last) pack_rows<S, A>(x + column, args.C, columns, vectors, count, packed);
      else pack_transposed<S, A>(x + column * args.HW, args.HW, columns, vectors, count, packed);
      gemm_panel(Rows<A>{a, row_stride, depth_stride}, rows, packed, width, vectors, count, partial, Epilogue<A>{},
                 [&](const A* tile, int64_t row, int64_t height) {
                   for (int64_t m = 0; m < height; ++m) {
                     A* to = sum + (first_row + row + m) * args.C + column;
                     for (int64_t j = 0; j < columns; ++j)
                       to[j] = first ? tile[m * width + j] : to[j] + tile[m * width + j];
                   }
                 });
    }
  }

  static void convert(const S* from, int64_t stride, int64_t lines, int64_t length, A* out) {
    using V = Vec<A>;
    for (int64_t i = 0; i < lines; ++i) {
      int64_t j = 0;
      for (; j + kLanes <= length; j += kLanes) V::load(from + i * stride + j).store(out + i * length + j);
      if (j < length) V::load(from + i * stride + j, int(length - j)).store(out + i * length + j, int(length - j));
    }
  }

  void run(int64_t slice, int64_t slices) {
    const bool channels_last = args.layout == Layout::kNHWC;
    const int64_t units =
        channels_last ? args.N * args.HW : args.N;  // what a slice is cut from: pixels, or whole images
    const int64_t begin = units * slice / slices, end = units * (slice + 1) / slices;
    const int64_t pixels = channels_last ? end - begin : args.HW;
    const int64_t chunks = ceil_div(pixels, kChunk);
    for (int64_t n = begin; n < (channels_last ? begin + 1 : end); ++n)
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const int64_t from = pixels * chunk / chunks, count = pixels * (chunk + 1) / chunks - from;
        add_chunk(channels_last ? 0 : n, (channels_last ? begin : 0) + from, count, n == begin && chunk == 0);
      }
  }
};

template <typename S> void run(const PointwiseWeightArgs& args) {
  using A = Accumulator<S>;
  constexpr double kPackingCycles = 4.5;
  const int64_t size = args.O * args.C, vectors = ceil_div(args.C, Vec<A>::kLanes);
  const int64_t slices = pointwise_weight_slices(args.N, args.HW, args.layout);
  const int64_t threads = useful_threads(args.N * args.HW * size);
  const GemmSplit split = choose_split(args.O, vectors, kPackingCycles, ceil_div(threads, slices));
  A* result = static_cast<A*>(args.grad_weight);
  A* partial = slices == 1 ? result : static_cast<A*>(args.partial);
  const int64_t parts = split.rows * split.vectors;
  parallel_for(slices * parts, ceil_div(slices * parts, threads), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t slice = i / parts, row_part = i % parts / split.vectors, vector_part = i % split.vectors;
      const int64_t row = args.O * row_part / split.rows, vector = vectors * vector_part / split.vectors;
      Task<S>(args, row, args.O * (row_part + 1) / split.rows - row, vector,
              vectors * (vector_part + 1) / split.vectors - vector, partial + slice * size)
          .run(slice, slices);
    }
  });
  if (slices == 1) return;
  constexpr int64_t kGrain = 16384;
  parallel_for(size, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      A sum = partial[i];
      for (int64_t slice = 1; slice < slices; ++slice) sum += partial[slice * size + i];
      result[i] = sum;
    }
  });
}

}  // namespace

void pointwise_backward_weight_kernel(const PointwiseWeightArgs& args) {
  dispatch_dtype(args.dtype, [&](auto tag) { run<typename decltype(tag)::type>(args); });
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
