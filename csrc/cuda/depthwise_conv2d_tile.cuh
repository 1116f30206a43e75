// SPDX-License-Identifier: Apache-2.0
// Depthwise convolution, forward, NHWC: the kernels for 3x3, 5x5 and 7x7 at stride 1 and 2. Free of torch.
//
// One thread owns kLanes channels (one 16-byte access) and a strip of kStrip outputs along W, and walks down H over
// `rows` outputs. Neighbouring threads own neighbouring channels, so that a warp's request is whole sectors when C *
// sizeof(S) is a multiple of 32 bytes. Requested input: (1 + (k - s) / (s kStrip)) (1 + (k - s) / (s rows)) of x, less
// at the borders; L1 serves the overlap (counted by tests/emulator: test_depthwise_bytes.py). Two ways to keep what the
// next row needs:
//   3x3     the last rows of the input as they came from memory, in registers (window): a new row costs kStride loads
//           a column.
//   5x5 7x7 a window would take 100 registers and more, so the sums of the kFlight outputs that an input row reaches
//           are kept (ring); each input row is loaded, widened and forgotten. The first kFlight - 1 turns only fill it.
// kSums has each block of an image add up its results per channel, before they are rounded, for the squeeze of an SE
// block: a block then keeps to one image, and where an image has fewer positions than a block, threads are idle.
// Weights: a block covers `chunk` <= kChunk groups of channels, loads their filters as they lie in memory ([C, 1, k,
// k], contiguous over the chunk), and keeps them in shared memory as float, tap by tap, scale multiplied in: two
// conflict-free 16-byte reads a tap serve 8 channels. They are read anew for each row: kept in registers they would
// take 8 k^2 of them, and spill. Shared memory: 4 (k^2 + 1) kLanes kChunk bytes, 5 to 13 KiB.
#pragma once

#include <type_traits>

#include "../common/shape.h"
#include "depthwise_conv2d_epilogue.cuh"
#include "vec.cuh"

namespace fastcnn {

template <typename S> struct DepthwiseTensors {
  using A = Accumulator<S>;
  const S* x;         // [N, C, H, W], dense in the geometry's layout, as are residual and y
  const S* weight;    // [O, 1, kH, kW], contiguous
  const A* scale;     // [O], or null
  const A* shift;     // [O], or null
  const S* residual;  // [N, O, Ho, Wo], or null
  S* y;               // [N, O, Ho, Wo]
  const S* grad = nullptr;  // [N, O, Ho, Wo], of y: for DepthwiseEpilogue::kGradient only
  float* sums = nullptr;    // [N, depthwise_sum_tiles(), C], of y over parts of an image: for kSums only, else null
};

template <typename S, int kKernel_, int kStride_> struct DepthwiseTile {
  static constexpr int kKernel = kKernel_, kStride = kStride_;
  static constexpr int kTaps = kKernel * kKernel;
  static constexpr int kThreads = 128;
  static constexpr int kLanes = kVectorLanes<S>;                         // channels of a thread
  static constexpr int kQuads = kLanes / 4;                              // 16-byte reads of a tap's weights
  static constexpr int kStrip = kKernel == 7 ? 1 : kKernel == 3 && kStride == 1 ? 4 : 2;  // outputs along W
  static constexpr int kColumns = (kStrip - 1) * kStride + kKernel;      // inputs along W
  static constexpr int kFlight = (kKernel + kStride - 1) / kStride;      // output rows that one input row reaches
  static constexpr bool kWindow = kKernel == 3;
  static constexpr int kChunk = kKernel == 3 ? 32 : kKernel == 5 ? 16 : 8;
  static constexpr int kRows = kKernel == 3 ? 7 : 14;  // outputs down H, twice as many where threads abound
  // Blocks on a multiprocessor that ptxas must leave registers for: 4 leave 128 a thread, 3 leave 168, 2 leave 255. An
  // epilogue of more than bounds takes more; so do 7x7 from sm_100 on, where ptxas computes in pairs of registers, and
  // bfloat16 on sm_75, which must round by integer instructions.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  static constexpr int kMinBlocks = kKernel == 5 ? 2 : kKernel == 3 && !std::is_same_v<S, BFloat16> ? 4 : 3;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  static constexpr int kMinBlocks = kKernel == 3 ? 4 : 2;
#else
  static constexpr int kMinBlocks = kKernel == 3 ? 4 : kKernel == 5 ? 2 : 3;
#endif
  static constexpr int kMinBlocksGeneral = kKernel == 3 ? 3 : 2;
  static constexpr int min_blocks(DepthwiseEpilogue epilogue) {
    return epilogue == DepthwiseEpilogue::kPlain      ? kMinBlocks
           : epilogue == DepthwiseEpilogue::kGeneral ? kMinBlocksGeneral
                                                      : 2;
  }
  static_assert(kLanes * sizeof(S) == kVectorBytes && kLanes % 4 == 0,
                "one 16-byte access a column, whole quads of weights");
  static_assert((kTaps + 1) * kLanes * kChunk * sizeof(float) <= 28 * 1024,
                "three blocks on a multiprocessor with 100 KiB");
  static_assert(kThreads % kChunk == 0, "a full chunk leaves no thread idle");
  static_assert(kThreads <= (kTaps + 1) * kChunk, "the sums of the block's threads fit where its filters were");
};

struct DepthwisePlan {
  int H, W, C, Ho, Wo, pad_top, pad_left;
  int groups, chunk, chunks;         // vectors of channels: all, of a block, blocks across
  int stretch;  // threads that are dealt out at a time, in whole chunks: of the block, or of a warp
  int strips, row_tiles, rows;
  unsigned positions;                // N * row_tiles * strips
  unsigned of_image, tiles;          // positions of an image; blocks that share them where a block keeps to one image
  Bounds bounds;
  Activation activation;
};

// A shared read that ptxas may not move out of the loop over rows, nor past another one.
__device__ __forceinline__ float4 read_again(const float4* p) {
#if defined(__CUDA_ARCH__)
  float4 v;
  asm volatile("ld.volatile.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(p))));
  return v;
#else
  return *p;
#endif
}

// What one thread works with. Channels go by quads from here on: with all kLanes at once the floats would not fit into
// the registers.
template <typename S, typename T> struct DepthwiseThread {
  using Vector = Vec<S, T::kLanes>;
  using Sums = float[T::kStrip * 4];  // [output][channel of the quad]

  const S* x;             // the next input row, at the strip's first column
  const float4* weights;  // shared, of this thread's channels: [tap][quad], kChunk apart
  int ih, first_column;   // of the next input row

  // Whether column j of a row is read. Two ways, by what ptxas 13.0 keeps from row to row: where each column's own
  // answer stays, 3x3 spills up to sm_90; where it is found anew for each row, 3x3 spills from sm_100 on.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  unsigned columns = 0;
  __device__ __forceinline__ void find_columns(int W) {
#pragma unroll
    for (int j = 0; j < T::kColumns; ++j) columns |= unsigned(first_column + j >= 0 && first_column + j < W) << j;
  }
  __device__ __forceinline__ bool reads(int j, bool row_inside, int) const {
    return row_inside && (columns >> j & 1u) != 0;
  }
#else
  __device__ __forceinline__ void find_columns(int) {}
  __device__ __forceinline__ bool reads(int j, bool row_inside, int W) const {
    return row_inside && first_column + j >= 0 && first_column + j < W;
  }
#endif

  __device__ __forceinline__ void load_row(Vector (&row)[T::kColumns], const DepthwisePlan& p, int first_row) {
    const bool inside = ih >= first_row && ih < p.H;
#pragma unroll
    for (int j = 0; j < T::kColumns; ++j)
      row[j] = load<T::kLanes>(x + unsigned(j) * unsigned(p.C), reads(j, inside, p.W));
    ++ih, x += int64_t(p.W) * p.C;
  }

  // weights of a tap; those of tap kTaps are the shifts
  __device__ __forceinline__ void read_tap(int tap, int quad, float (&w)[4]) const {
    const float4* at = weights + (tap * T::kQuads + quad) * T::kChunk;
    // the ring has registers to spare, but not for as many reads as ptxas then issues ahead of the sums
    const float4 four = T::kWindow ? read_again(at) : *at;
    w[0] = four.x, w[1] = four.y, w[2] = four.z, w[3] = four.w;
  }

  __device__ __forceinline__ void start(int quad, Sums& sum) const {
    float shift[4];
    read_tap(T::kTaps, quad, shift);
#pragma unroll
    for (int i = 0; i < T::kStrip * 4; ++i) sum[i] = shift[i % 4];
  }

  // Row r of the filter over a row as it came from memory: column by column, each widened once, the row's weights in
  // registers.
  __device__ __forceinline__ void add_row(int r, int quad, const Vector (&row)[T::kColumns], Sums& sum) const {
    float w[T::kKernel][4];
#pragma unroll
    for (int q = 0; q < T::kKernel; ++q) read_tap(r * T::kKernel + q, quad, w[q]);
#pragma unroll
    for (int j = 0; j < T::kColumns; ++j) {
      float v[4];
      widen(quad_of(row[j], quad), v);
#pragma unroll
      for (int q = 0; q < T::kKernel; ++q) {
        const int o = (j - q) / T::kStride;  // column j meets tap q at output o
        if (j < q || (j - q) % T::kStride != 0 || o >= T::kStrip) continue;
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[o * 4 + e] = fmaf(v[e], w[q][e], sum[o * 4 + e]);
      }
    }
  }

  // The same over a row widened already: tap by tap, so that the row and not the weights stays in registers.
  __device__ __forceinline__ void add_widened(int r, int quad, const float (&columns)[T::kColumns][4],
                                              Sums& sum) const {
#pragma unroll
    for (int q = 0; q < T::kKernel; ++q) {
      float w[4];
      read_tap(r * T::kKernel + q, quad, w);
#pragma unroll
      for (int i = 0; i < T::kStrip * 4; ++i) sum[i] = fmaf(columns[i / 4 * T::kStride + q][i % 4], w[i % 4], sum[i]);
    }
  }
};

// Shared memory of a block: the filters of its channels, transposed to [tap][quad][group] and scaled; behind them the
// shifts.
template <typename S, typename T>
__device__ __forceinline__ void stage_weights(float4 (&staged)[T::kTaps + 1][T::kQuads][T::kChunk],
                                              const DepthwiseTensors<S>& t, int first, int channels) {
  const auto put = [&](int tap, int channel, float value) {
    reinterpret_cast<float*>(&staged[tap][channel % T::kLanes / 4][channel / T::kLanes])[channel % 4] = value;
  };
  const S* weight = t.weight + int64_t(first) * T::kTaps;
  const int vectors = channels / T::kLanes * T::kTaps;
  for (int base = 0; base < vectors; base += T::kThreads) {
    const int i = base + int(threadIdx.x);
    float value[T::kLanes];
    widen(load<T::kLanes>(weight + int64_t(i) * T::kLanes, i < vectors), value);
#pragma unroll
    for (int e = 0; e < T::kLanes; ++e) {
      const int channel = (i * T::kLanes + e) / T::kTaps, tap = (i * T::kLanes + e) % T::kTaps;
      float scale[1] = {1.0f};
      if (t.scale != nullptr) widen(load<1>(t.scale + first + channel, i < vectors), scale);
      if (i < vectors) put(tap, channel, value[e] * scale[0]);
    }
  }
  for (int base = 0; base < channels; base += T::kThreads) {
    const int channel = base + int(threadIdx.x);
    float shift[1] = {0.0f};
    if (t.shift != nullptr) widen(load<1>(t.shift + first + channel, channel < channels), shift);
    if (channel < channels) put(T::kTaps, channel, shift[0]);
  }
}

template <typename S, typename T, DepthwiseEpilogue kEpilogue>
__global__ void __launch_bounds__(T::kThreads, T::min_blocks(kEpilogue))
    depthwise_conv2d_forward_kernel(DepthwiseTensors<S> t, DepthwisePlan p) {
  constexpr bool kPlain = kEpilogue == DepthwiseEpilogue::kPlain;
  constexpr bool kGradient = kEpilogue == DepthwiseEpilogue::kGradient, kSums = kEpilogue == DepthwiseEpilogue::kSums;
  __shared__ float4 staged[T::kTaps + 1][T::kQuads][T::kChunk];
  const int first_group = int(blockIdx.x % unsigned(p.chunks)) * p.chunk;
  const int groups = min(p.chunk, p.groups - first_group);
  stage_weights<S, T>(staged, t, first_group * T::kLanes, groups * T::kLanes);
  __syncthreads();

  const int of_stretch = p.stretch / p.chunk;
  const int stretch = int(threadIdx.x) / p.stretch, thread_of = int(threadIdx.x) - stretch * p.stretch;
  const int own = thread_of / p.chunk, group = thread_of - own * p.chunk;
  const unsigned of_block = unsigned(T::kThreads / p.stretch * of_stretch);
  const unsigned block = blockIdx.x / unsigned(p.chunks), slot = unsigned(stretch * of_stretch + own);
  unsigned position = block * of_block + slot, last_position = p.positions;
  if constexpr (kSums) {
    const unsigned first = block / p.tiles * p.of_image;
    position = first + block % p.tiles * of_block + slot, last_position = first + p.of_image;
  }
  const bool live = own < of_stretch && group < groups && position < last_position;
  if (!kSums && !live) return;
  const int strip = int(position % unsigned(p.strips));
  const unsigned rest = position / unsigned(p.strips);
  const int row_tile = int(rest % unsigned(p.row_tiles));
  const int64_t n = rest / unsigned(p.row_tiles);
  const int oh0 = row_tile * p.rows, ow0 = strip * T::kStrip;
  const int own_rows = live ? min(p.rows, p.Ho - oh0) : 0, rows = kSums ? p.rows : own_rows;
  const int c = (first_group + group) * T::kLanes;

  // the ring's first kFlight - 1 turns finish nothing
  constexpr int kFirst = T::kWindow ? 0 : 1 - T::kFlight;
  const int ih0 = (oh0 + kFirst) * T::kStride - p.pad_top + (T::kWindow ? 0 : T::kKernel - T::kStride);
  const int iw0 = ow0 * T::kStride - p.pad_left;
  DepthwiseThread<S, T> thread = {t.x + ((n * p.H + ih0) * p.W + iw0) * p.C + c, &staged[0][0][group],
                                  live ? ih0 : p.H, iw0};
  thread.find_columns(p.W);
  int64_t at = ((n * p.Ho + oh0 + kFirst) * p.Wo + ow0) * p.C + c;  // of the row of y that this turn finishes

  using Vector = Vec<S, T::kLanes>;
  Vector residual[T::kStrip], grad[T::kStrip], out[T::kStrip];
  const auto load_strip = [&](const S* from, Vector (&strip_of)[T::kStrip], bool wanted) {
#pragma unroll
    for (int o = 0; o < T::kStrip; ++o)
      strip_of[o] = load<T::kLanes>(from + at + unsigned(o) * unsigned(p.C), wanted && ow0 + o < p.Wo);
  };
  const auto load_residual = [&](bool wanted) {
    if constexpr (!kPlain) {
      if (t.residual != nullptr) load_strip(t.residual, residual, wanted);
    }
    if constexpr (kGradient) load_strip(t.grad, grad, wanted);
  };
  [[maybe_unused]] float total[T::kLanes] = {};
  const auto finish = [&](int quad, float (&sum)[T::kStrip * 4], bool wanted) {
    if constexpr (kPlain) {
#pragma unroll
      for (int i = 0; i < T::kStrip * 4; ++i) sum[i] = p.bounds(sum[i]);
    } else {
      if (t.residual != nullptr) {
#pragma unroll
        for (int o = 0; o < T::kStrip; ++o) {
          float more[4];
          widen(quad_of(residual[o], quad), more);
#pragma unroll
          for (int e = 0; e < 4; ++e) sum[o * 4 + e] += more[e];
        }
      }
      if constexpr (kGradient) {
        float factors[T::kStrip * 4];
#pragma unroll
        for (int o = 0; o < T::kStrip; ++o) {
          float four[4];
          widen(quad_of(grad[o], quad), four);
#pragma unroll
          for (int e = 0; e < 4; ++e) factors[o * 4 + e] = four[e];
        }
        differentiate(p.activation, sum);
#pragma unroll
        for (int i = 0; i < T::kStrip * 4; ++i) sum[i] *= factors[i];
      } else {
        activate(p.activation, sum);
      }
      if constexpr (kSums) {
#pragma unroll
        for (int i = 0; i < T::kStrip * 4; ++i)
          if (wanted && ow0 + i / 4 < p.Wo) total[quad * 4 + i % 4] += sum[i];
      }
    }
#pragma unroll
    for (int o = 0; o < T::kStrip; ++o) {
      const float four[4] = {sum[o * 4], sum[o * 4 + 1], sum[o * 4 + 2], sum[o * 4 + 3]};
      set_quad(out[o], quad, narrow<S>(four));
    }
  };
  const auto store_row = [&](bool wanted) {
#pragma unroll
    for (int o = 0; o < T::kStrip; ++o) store(t.y + at + unsigned(o) * unsigned(p.C), out[o], wanted && ow0 + o < p.Wo);
    at += int64_t(p.Wo) * p.C;
  };

  if constexpr (T::kWindow) {
    Vector window[T::kKernel][T::kColumns];
    constexpr int kKept = T::kKernel - T::kStride;
#pragma unroll
    for (int i = 0; i < kKept; ++i) thread.load_row(window[i], p, 0);
#pragma unroll 1
    for (int row = 0; row < rows; ++row) {
#pragma unroll
      for (int i = kKept; i < T::kKernel; ++i) thread.load_row(window[i], p, 0);
      const bool wanted = !kSums || row < own_rows;
      load_residual(wanted);
#pragma unroll
      for (int quad = 0; quad < T::kQuads; ++quad) {
        float sum[T::kStrip * 4];
        thread.start(quad, sum);
#pragma unroll
        for (int r = 0; r < T::kKernel; ++r) thread.add_row(r, quad, window[r], sum);
        finish(quad, sum, wanted);
      }
      store_row(wanted);
#pragma unroll
      for (int i = 0; i < kKept; ++i)
#pragma unroll
        for (int j = 0; j < T::kColumns; ++j) window[i][j] = window[i + T::kStride][j];
    }
  } else {
    const int first_row = max(oh0 * T::kStride - p.pad_top, 0);
    float sums[T::kFlight][T::kQuads][T::kStrip * 4];  // [d]: of the output row d below the one that this turn finishes
#pragma unroll
    for (int d = 0; d < T::kFlight; ++d)
#pragma unroll
      for (int quad = 0; quad < T::kQuads; ++quad) thread.start(quad, sums[d][quad]);
#pragma unroll 1
    for (int row = kFirst; row < rows; ++row) {
      const bool wanted = row >= 0 && (!kSums || row < own_rows);
      load_residual(wanted);
#pragma unroll
      for (int i = 0; i < T::kStride; ++i) {
        const int r = T::kKernel - T::kStride + i;  // the filter's row that meets this input row in output row `row`
        const bool last = i == T::kStride - 1;
        Vector loaded[T::kColumns];
        thread.load_row(loaded, p, first_row);
#pragma unroll
        for (int quad = 0; quad < T::kQuads; ++quad) {
          float columns[T::kColumns][4];
#pragma unroll
          for (int j = 0; j < T::kColumns; ++j) widen(quad_of(loaded[j], quad), columns[j]);
          thread.add_widened(r, quad, columns, sums[0][quad]);
          if (last) finish(quad, sums[0][quad], wanted);
#pragma unroll
          for (int d = 1; d < T::kFlight; ++d) {
            const int to = last ? d - 1 : d;  // the finished row makes room: what follows moves up as it is added to
#pragma unroll
            for (int k = 0; k < T::kStrip * 4; ++k) sums[to][quad][k] = sums[d][quad][k];
            if (r - d * T::kStride >= 0) thread.add_widened(r - d * T::kStride, quad, columns, sums[to][quad]);
          }
          if (last) thread.start(quad, sums[T::kFlight - 1][quad]);
        }
      }
      store_row(wanted);
    }
  }

  if constexpr (kSums) {
    __syncthreads();
    float4* shared = &staged[0][0][0];  // [slot][quad of channels]: the filters have served
    if (own < of_stretch && group < groups) {
#pragma unroll
      for (int quad = 0; quad < T::kQuads; ++quad)
        shared[(int(slot) * groups + group) * T::kQuads + quad] =
            make_float4(total[quad * 4], total[quad * 4 + 1], total[quad * 4 + 2], total[quad * 4 + 3]);
    }
    __syncthreads();
    const int quads = groups * T::kQuads, quad = int(threadIdx.x);
    static_assert(T::kChunk * T::kQuads <= T::kThreads, "a thread for each quad of channels");
    float all[4] = {};
    for (unsigned j = 0; j < of_block && quad < quads; ++j) {
      const float4 v = shared[int(j) * quads + quad];
      all[0] += v.x, all[1] += v.y, all[2] += v.z, all[3] += v.w;
    }
    store(t.sums + int64_t(block) * p.C + first_group * T::kLanes + quad * 4, narrow<float>(all), quad < quads);
  }
}

}  // namespace fastcnn
