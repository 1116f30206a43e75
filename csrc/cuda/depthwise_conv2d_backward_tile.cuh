// SPDX-License-Identifier: Apache-2.0
// Depthwise convolution, gradients of x and of the weight in one kernel, NHWC: 3x3, 5x5 and 7x7 at stride 1 and 2. Free
// of torch.
//
// Both gradients pair an input pixel with the outputs around it: grad_x[i] sums grad[o] weight[i - o] over them, and
// grad_weight[i - o] sums grad[o] x[i]. So a block stages a tile of x and the outputs that its pixels meet, once each,
// in shared memory, and takes both gradients from there. The input, padding included, falls into cells of stride x
// stride pixels, of which cell a meets outputs a, a - 1, .. a - kReach + 1 along an axis: at a given place in its cell
// a pixel meets every stride-th tap, so that at stride 2 nothing is multiplied by zero.
//   tile    8 x 16 pixels at stride 1, 16 x 16 at stride 2, of 4 vectors of channels: 64 bytes of a pixel, two sectors,
//           a pixel every 80 bytes of shared memory, so that strips meet different banks. With the filter as float,
//           [tap][quad][vector], 18 to 41 KiB.
//   bytes   requested: x and grad_x 1.0, grad (1 + (kReach - 1) / rows) (1 + (kReach - 1) / columns) of a tile's cells,
//           1.41 at most for full tiles of 3x3 at stride 1; the overlap lies in L2. A thread issues at least 4 loads
//           of 16 bytes before it waits.
//   grad_x  a thread computes a strip of 4 pixels of a vector of channels.
//   grad_weight  a thread owns a quad of channels, a row of the filter and every kSubsets-th strip of the tile; its
//           kKernel x 4 sums stay in registers over all `span` tiles of the block. At the end the block adds the
//           subsets in order and writes a row of partial sums a tap, which depthwise_conv2d_backward.cuh reduces.
// The staging of the filter is the forward's. A NaN or infinity of x reaches taps beside its own at the border of z.
#pragma once

#include "depthwise_conv2d_tile.cuh"

namespace fastcnn {

template <typename S> struct DepthwiseGradients {
  using A = Accumulator<S>;
  const S* grad;    // of z: [N, O, Ho, Wo], dense in the geometry's layout, as are x and grad_x
  const S* x;       // [N, C, H, W]
  const S* weight;  // [O, 1, kH, kW], contiguous, as is grad_weight
  S* grad_x;        // null where it is not wanted, as are the two below
  S* grad_weight;
  A* grad_bias;  // [O]
  A* partials;   // depthwise_partials() of them, for grad_weight and grad_bias
};

template <typename S, int kKernel_, int kStride_> struct DepthwiseGradientTile {
  static constexpr int kKernel = kKernel_, kStride = kStride_;
  static constexpr int kTaps = kKernel * kKernel;
  static constexpr int kThreads = 128;
  static constexpr int kLanes = kVectorLanes<S>;  // channels of a vector
  static constexpr int kQuads = kLanes / 4;
  static constexpr int kChunk = 4;                                    // vectors of channels of a block
  static constexpr int kReach = (kKernel + kStride - 1) / kStride;    // outputs that a pixel meets along an axis
  static constexpr int kStrip = 4, kCells = kStrip / kStride;         // pixels along W of a thread at a time; cells
  static constexpr int kRows = 8, kColumns = 16 / kStride;            // of cells, at most
  static constexpr int kGradColumns = kColumns + kReach - 1, kInputColumns = kColumns * kStride;
  static constexpr int kPitch = kChunk + 1;                           // vectors from pixel to pixel of a staged tile
  static constexpr int kGradVectors = (kRows + kReach - 1) * kGradColumns * kPitch;
  static constexpr int kInputVectors = kRows * kStride * kInputColumns * kPitch;
  static constexpr int kAcross = kChunk * kQuads;                     // quads of channels of a block
  static constexpr int kSubsets = kThreads / kAcross / kKernel;       // shares of the tile for grad_weight
  static_assert(kLanes * sizeof(S) == kVectorBytes && kLanes % 4 == 0 && kStrip % kStride == 0 &&
                    kColumns % kCells == 0 && kSubsets > 0,
                "whole vectors, quads, cells and strips");
  static_assert(kSubsets * kTaps * kAcross <= kGradVectors + kInputVectors, "sums fit where the tiles were");
  static_assert((kGradVectors + kInputVectors + (kTaps + 1) * kAcross) * kVectorBytes <= 44 * 1024,
                "static shared memory, and one block on a multiprocessor with 64 KiB");
};

struct DepthwiseGradientPlan {
  int H, W, C, Ho, Wo, pad_top, pad_left;
  int groups, chunk, chunks;             // vectors of channels: all, of a block, blocks across
  int first_row, first_column;           // the cell of the first pixel
  int rows, columns;                     // cells of a tile; columns are whole strips
  int row_tiles, column_tiles;
  unsigned units, span;                  // tiles of all images; of a block
};

// Rows [first_row, + rows) and columns [first_column, + columns) of an image of H x W, zeros outside it.
template <typename T, int kWidth, typename S>
__device__ __forceinline__ void stage_tile(uint4* staged, const S* image, const DepthwiseGradientPlan& p, int groups,
                                           int H, int W, int first_row, int rows, int first_column, int columns) {
#pragma unroll 4
  for (int base = 0; base < rows * kWidth * T::kChunk; base += T::kThreads) {
    const int i = base + int(threadIdx.x), vector = i % T::kChunk, pixel = i / T::kChunk;
    const int row = pixel / kWidth, column = pixel - row * kWidth, h = first_row + row, w = first_column + column;
    const bool inside =
        vector < groups && row < rows && column < columns && h >= 0 && h < H && w >= 0 && w < W;
    const auto loaded = load<T::kLanes>(image + (int64_t(h) * W + w) * p.C + vector * T::kLanes, inside);
    if (row < rows) staged[pixel * T::kPitch + vector] = loaded.word;
  }
}

template <typename S> __device__ __forceinline__ void read_quad(const uint4* vector, int quad, float (&lanes)[4]) {
  Vec<S, 4> part;
  memcpy(&part, reinterpret_cast<const Vec<S, 4>*>(vector) + quad, sizeof part);
  widen(part, lanes);
}

// Cell (row, column) of a staged tile of grad is the first of the kReach outputs that a pixel of that cell meets last.
template <typename S, typename T>
__device__ __forceinline__ void tile_of_grad_x(S* image, const DepthwiseGradientPlan& p, const uint4* grad,
                                               const float4 (&weights)[T::kTaps + 1][T::kQuads][T::kChunk],
                                               int groups, int first_row, int first_column) {
  const int strips = p.columns / T::kCells, items = p.rows * T::kStride * strips * T::kChunk;
  for (int base = 0; base < items; base += T::kThreads) {
    const int i = base + int(threadIdx.x) < items ? base + int(threadIdx.x) : 0, vector = i % T::kChunk;
    const int row = i / T::kChunk / strips, strip = i / T::kChunk - row * strips, cell = row / T::kStride;
    float sum[T::kQuads][T::kStrip * 4] = {};
#pragma unroll (T::kKernel == 3 ? T::kReach : 1)
    for (int up = 0; up < T::kReach; ++up) {
      const int r = row % T::kStride + up * T::kStride;
      if (r >= T::kKernel) break;
      const int first = (cell + T::kReach - 1 - up) * T::kGradColumns + strip * T::kCells;
      const uint4* from = grad + first * T::kPitch + vector;
#pragma unroll
      for (int quad = 0; quad < T::kQuads; ++quad) {
        float outputs[T::kCells + T::kReach - 1][4];
#pragma unroll
        for (int j = 0; j < T::kCells + T::kReach - 1; ++j) read_quad<S>(from + j * T::kPitch, quad, outputs[j]);
#pragma unroll
        for (int q = 0; q < T::kKernel; ++q) {
          const float4 w = weights[r * T::kKernel + q][quad][vector];
          const float lanes[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
          for (int b = 0; b < T::kCells; ++b) {
            const int pixel = b * T::kStride + q % T::kStride, output = b + T::kReach - 1 - q / T::kStride;
#pragma unroll
            for (int e = 0; e < 4; ++e)
              sum[quad][pixel * 4 + e] = fmaf(outputs[output][e], lanes[e], sum[quad][pixel * 4 + e]);
          }
        }
      }
    }
    const int h = first_row + row, w0 = first_column + strip * T::kStrip;
    const bool wanted = base + int(threadIdx.x) < items && vector < groups && h >= 0 && h < p.H;
#pragma unroll
    for (int j = 0; j < T::kStrip; ++j) {
      Vec<S, T::kLanes> out;
#pragma unroll
      for (int quad = 0; quad < T::kQuads; ++quad) {
        const float four[4] = {sum[quad][j * 4], sum[quad][j * 4 + 1], sum[quad][j * 4 + 2], sum[quad][j * 4 + 3]};
        set_quad(out, quad, narrow<S>(four));
      }
      store(image + (int64_t(h) * p.W + w0 + j) * p.C + vector * T::kLanes, out, wanted && w0 + j >= 0 && w0 + j < p.W);
    }
  }
}

// Row r of the filter, one quad of channels, over the strips of one subset.
template <typename S, typename T>
__device__ __forceinline__ void add_grad_weight(float (&sum)[T::kKernel][4], const DepthwiseGradientPlan& p,
                                                const uint4* grad, const uint4* x, int r, int quad, int subset) {
  const int strips = p.columns / T::kCells, vector = quad / T::kQuads, part = quad % T::kQuads;
#pragma unroll 1
  for (int i = subset; i < p.rows * strips; i += T::kSubsets) {
    const int cell = i / strips, strip = i - cell * strips;
    const int row = cell * T::kStride + r % T::kStride, row_met = cell + T::kReach - 1 - r / T::kStride;
    const uint4* from = x + (row * T::kInputColumns + strip * T::kStrip) * T::kPitch + vector;
    const uint4* met = grad + (row_met * T::kGradColumns + strip * T::kCells) * T::kPitch + vector;
    float pixels[T::kStrip][4], outputs[T::kCells + T::kReach - 1][4];
#pragma unroll
    for (int j = 0; j < T::kStrip; ++j) read_quad<S>(from + j * T::kPitch, part, pixels[j]);
#pragma unroll
    for (int j = 0; j < T::kCells + T::kReach - 1; ++j) read_quad<S>(met + j * T::kPitch, part, outputs[j]);
#pragma unroll
    for (int q = 0; q < T::kKernel; ++q)
#pragma unroll
      for (int b = 0; b < T::kCells; ++b) {
        const int pixel = b * T::kStride + q % T::kStride, output = b + T::kReach - 1 - q / T::kStride;
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[q][e] = fmaf(outputs[output][e], pixels[pixel][e], sum[q][e]);
      }
  }
}

template <typename S, typename T>
__global__ void __launch_bounds__(T::kThreads, T::kKernel == 3 ? 4 : 3)
    depthwise_conv2d_backward_tile_kernel(DepthwiseGradients<S> t, DepthwiseGradientPlan p) {
  __shared__ float4 weights[T::kTaps + 1][T::kQuads][T::kChunk];
  __shared__ uint4 tiles[T::kGradVectors + T::kInputVectors];
  uint4 *grad = tiles, *x = tiles + T::kGradVectors;
  const int first_group = int(blockIdx.x % unsigned(p.chunks)) * p.chunk, c = first_group * T::kLanes;
  const int groups = min(p.chunk, p.groups - first_group);
  const unsigned slice = blockIdx.x / unsigned(p.chunks), first_unit = slice * p.span;
  if (t.grad_x != nullptr) {
    const DepthwiseTensors<S> filter = {nullptr, t.weight, nullptr, nullptr, nullptr, nullptr};
    stage_weights<S, T>(weights, filter, c, groups * T::kLanes);
  }
  const int quad = int(threadIdx.x) % T::kAcross, r = int(threadIdx.x) / T::kAcross % T::kKernel;
  const int subset = int(threadIdx.x) / T::kAcross / T::kKernel;
  float sum[T::kKernel][4] = {};
#pragma unroll 1
  for (unsigned unit = first_unit; unit < min(first_unit + p.span, p.units); ++unit) {
    const unsigned rest = unit / unsigned(p.column_tiles);
    const int row0 = p.first_row + int(rest % unsigned(p.row_tiles)) * p.rows;
    const int column0 = p.first_column + int(unit - rest * unsigned(p.column_tiles)) * p.columns;
    const int64_t n = rest / unsigned(p.row_tiles);
    const int h0 = row0 * T::kStride - p.pad_top, w0 = column0 * T::kStride - p.pad_left;
    constexpr int kMore = T::kReach - 1;
    stage_tile<T, T::kGradColumns>(grad, t.grad + n * p.Ho * p.Wo * p.C + c, p, groups, p.Ho, p.Wo, row0 - kMore,
                                   p.rows + kMore, column0 - kMore, p.columns + kMore);
    if (t.grad_weight != nullptr)
      stage_tile<T, T::kInputColumns>(x, t.x + n * p.H * p.W * p.C + c, p, groups, p.H, p.W, h0, p.rows * T::kStride,
                                      w0, p.columns * T::kStride);
    __syncthreads();
    if (t.grad_x != nullptr)
      tile_of_grad_x<S, T>(t.grad_x + n * p.H * p.W * p.C + c, p, grad, weights, groups, h0, w0);
    if (t.grad_weight != nullptr && subset < T::kSubsets)
      add_grad_weight<S, T>(sum, p, grad, x, r, quad, subset);
    __syncthreads();
  }
  if (t.grad_weight == nullptr) return;
  float4* sums = reinterpret_cast<float4*>(tiles);  // [subset][tap][quad]
  if (subset < T::kSubsets) {
#pragma unroll
    for (int q = 0; q < T::kKernel; ++q)
      sums[(subset * T::kTaps + r * T::kKernel + q) * T::kAcross + quad] =
          make_float4(sum[q][0], sum[q][1], sum[q][2], sum[q][3]);
  }
  __syncthreads();
  for (int base = 0; base < T::kTaps * T::kAcross; base += T::kThreads) {
    const int i = base + int(threadIdx.x), tap = i / T::kAcross, own = i % T::kAcross;
    float total[4] = {};
    if (tap < T::kTaps) {
      for (int j = 0; j < T::kSubsets; ++j) {
        const float4 v = sums[j * T::kTaps * T::kAcross + i];
        total[0] += v.x, total[1] += v.y, total[2] += v.z, total[3] += v.w;
      }
    }
    store(t.partials + (int64_t(slice) * T::kTaps + tap) * p.C + c + own * 4, narrow<float>(total),
          tap < T::kTaps && own < groups * T::kQuads);
  }
}

// Tiles of even size, and a span of them for a block: as few partial sums as leave the largest device full.
template <typename T> DepthwiseGradientPlan plan_depthwise_gradient(const ConvGeometry& g) {
  constexpr int64_t kBlocksThatFill = int64_t(132) * 16, kMostSlices = 1024;
  DepthwiseGradientPlan p{};
  p.H = int(g.H), p.W = int(g.W), p.C = int(g.C), p.Ho = int(g.Ho), p.Wo = int(g.Wo);
  p.pad_top = int(g.pad_top), p.pad_left = int(g.pad_left);
  p.groups = p.C / T::kLanes;
  p.chunk = int(ceil_div(p.groups, ceil_div(p.groups, T::kChunk)));
  if (p.groups % 2 == 0) p.chunk = int(ceil_div(p.chunk, 2)) * 2;  // blocks begin at a sector's boundary
  p.chunks = int(ceil_div(p.groups, p.chunk));
  p.first_row = p.pad_top / T::kStride, p.first_column = p.pad_left / T::kStride;
  const int rows = (p.H - 1 + p.pad_top) / T::kStride - p.first_row + 1;
  const int columns = (p.W - 1 + p.pad_left) / T::kStride - p.first_column + 1;
  p.rows = int(ceil_div(rows, ceil_div(rows, T::kRows)));
  p.columns = int(ceil_div(ceil_div(columns, ceil_div(columns, T::kColumns)), T::kCells)) * T::kCells;
  p.row_tiles = int(ceil_div(rows, p.rows)), p.column_tiles = int(ceil_div(columns, p.columns));
  p.units = unsigned(g.N * p.row_tiles * p.column_tiles);
  const int64_t full = ceil_div(int64_t(p.units) * p.chunks, kBlocksThatFill), few = ceil_div(p.units, kMostSlices);
  p.span = unsigned(full > few ? full : few);
  return p;
}

inline int64_t slices_of(const DepthwiseGradientPlan& p) { return ceil_div(p.units, p.span); }

template <typename S, typename T>
cudaError_t launch_depthwise_backward_tile(const DepthwiseGradients<S>& t, const DepthwiseGradientPlan& p,
                                           cudaStream_t stream) {
  return launch(&depthwise_conv2d_backward_tile_kernel<S, T>, dim3(unsigned(slices_of(p) * p.chunks)),
                dim3(T::kThreads), 0, stream, t, p);
}

}  // namespace fastcnn
