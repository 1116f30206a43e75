// SPDX-License-Identifier: Apache-2.0
// Sums over the pixels of each channel in two stages, for the statistics of batch norm, here, and for its backward:
// blocks sum segments of positions, then a warp a channel sums the segments in double. Free of torch.
//
// A block takes `chunk` vectors of channels (NHWC, at most 512 bytes of a pixel) or one channel (NCHW) over a segment
// of positions, kBatchNormFlight loads a thread in flight. Segments, tiles and the tree over a block's rows follow from
// the shape alone: no atomics, the same bits on every run and device. Requested: each element of a tensor once, and
// beside them 16 bytes a channel and segment, written once. Shared memory: one accumulator for each channel of a
// thread, 8 KiB at most.
//
// Statistics: the mean of a block's first tile, kept in registers, is the centre about which the block sums d and d^2
// in float. A tile's mean is near the segment's, so nothing is lost where |mean| >> std. Segments are merged by their
// means (Chan et al.); their 16 bytes are read twice for it.
#pragma once

#include "batch_norm_act.cuh"

namespace fastcnn {

// How a tensor is dealt out to blocks. A position is a pixel (NHWC) or a vector of pixels (NCHW); a block has `rows`
// rows of `chunk` threads, a thread to each vector of channels (NHWC) or to the channel (NCHW) of a position.
struct SumPlan {
  int64_t groups, positions, of_image;  // of_image: positions of an image, NCHW
  int chunk, chunks, rows;
  int64_t length, segments;  // positions of a segment
};

// Blocks that fill the largest device that we know twice over, so that segments do not depend on the device at hand.
constexpr int64_t kSumBlocks = 1024;
constexpr int kSumChunk = 32, kSumChunkOfOne = 64;  // threads across the channels of a pixel: 512 bytes, or 64 elements

template <int kLanes> SumPlan plan_sums(const BatchNormShape& s) {
  SumPlan p{};
  const bool nhwc = s.layout == Layout::kNHWC;
  p.groups = nhwc ? s.C / kLanes : s.C;
  p.of_image = nhwc ? s.HW : s.HW / kLanes;
  p.positions = s.N * p.of_image;
  const int64_t most = !nhwc ? 1 : kLanes == 1 ? kSumChunkOfOne : kSumChunk;
  const int even = nhwc && p.groups % 2 == 0 ? 2 : 1;  // blocks begin at a sector's boundary
  p.chunk = int(ceil_div(ceil_div(p.groups, ceil_div(p.groups, most)), even)) * even;
  p.chunks = int(ceil_div(p.groups, p.chunk));
  p.rows = kBatchNormThreads / p.chunk;
  constexpr int kLeastTiles = 2;
  const int64_t by_size = ceil_div(p.positions, int64_t(p.rows) * kBatchNormFlight * kLeastTiles);
  const int64_t by_blocks = ceil_div(kSumBlocks, p.chunks);
  p.length = ceil_div(p.positions, by_size < by_blocks ? by_size : by_blocks);
  p.segments = ceil_div(p.positions, p.length);
  return p;
}

// Doubles that the segments of any plan for this shape fill, two a segment and channel.
inline int64_t batch_norm_sums_size(int64_t N, int64_t C, int64_t HW) {
  constexpr int64_t kMostChannels = 8 * kSumChunk;  // of a block
  constexpr int64_t kLeastPositions = kBatchNormThreads / kSumChunkOfOne * kBatchNormFlight * 2;
  const int64_t by_size = ceil_div(N * HW, kLeastPositions);
  const int64_t by_blocks = ceil_div(kSumBlocks, C > kMostChannels ? ceil_div(C, kMostChannels) : 1);
  return 2 * C * (by_size < by_blocks ? by_size : by_blocks);
}

template <int kLanes, Layout kLayout> struct SumThread {
  static constexpr int kValues = kLayout == Layout::kNHWC ? kLanes : 1;  // channels of a vector

  int row, column;
  int64_t group, segment, begin, end;
  bool active;

  __device__ __forceinline__ explicit SumThread(const SumPlan& p) {
    segment = blockIdx.x / unsigned(p.chunks);
    row = int(threadIdx.x) / p.chunk, column = int(threadIdx.x) - row * p.chunk;
    group = int64_t(blockIdx.x % unsigned(p.chunks)) * p.chunk + column;
    active = row < p.rows && group < p.groups;
    begin = segment * p.length;
    end = begin + p.length < p.positions ? begin + p.length : p.positions;
  }
  // the k-th position of this thread in the tile that begins at `first`
  __device__ __forceinline__ int64_t position(const SumPlan& p, int64_t first, int k) const {
    return first + k * p.rows + row;
  }
  __device__ __forceinline__ bool reads(const SumPlan& p, int64_t first, int k) const {
    return active && position(p, first, k) < end;
  }
  __device__ __forceinline__ int64_t offset(const SumPlan& p, int64_t first, int k) const {
    const int64_t at = position(p, first, k);
    if constexpr (kLayout == Layout::kNHWC) return (at * p.groups + group) * kLanes;
    const int64_t n = at / p.of_image;
    return ((n * p.groups + group) * p.of_image + (at - n * p.of_image)) * kLanes;
  }
  template <typename S>
  __device__ __forceinline__ void load_tile(const SumPlan& p, int64_t first, const S* x,
                                            Vec<S, kLanes> (&loaded)[kBatchNormFlight]) const {
#pragma unroll
    for (int k = 0; k < kBatchNormFlight; ++k) loaded[k] = load<kLanes>(x + offset(p, first, k), reads(p, first, k));
  }

  // Each value summed over the rows of the block, in an order that the shape fixes; every thread gets the sums of its
  // column.
  template <typename A>
  __device__ __forceinline__ void sum_rows(const SumPlan& p, A (&shared)[kValues][kBatchNormThreads],
                                           A (&value)[kValues]) const {
    const int thread = int(threadIdx.x);
#pragma unroll
    for (int v = 0; v < kValues; ++v) shared[v][thread] = value[v];
    for (int rows = p.rows; rows > 1; rows = (rows + 1) / 2) {
      const int half = (rows + 1) / 2;
      __syncthreads();
      if (row + half < rows)
        for (int v = 0; v < kValues; ++v) shared[v][thread] += shared[v][thread + half * p.chunk];
    }
    __syncthreads();
#pragma unroll
    for (int v = 0; v < kValues; ++v) value[v] = shared[v][column];
    __syncthreads();
  }

  // Two values of each channel, written by the first row.
  __device__ __forceinline__ void store_parts(const SumPlan& p, const double (&a)[kValues], const double (&b)[kValues],
                                              double* parts) const {
#pragma unroll
    for (int v = 0; v < kValues; ++v) {
      const double pair[2] = {a[v], b[v]};
      store(parts + ((group * kValues + v) * p.segments + segment) * 2, narrow<double>(pair), active && row == 0);
    }
  }
};

__device__ __forceinline__ double sum_of_warp(double value) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
  return value;
}

constexpr int kWarpsOfMerge = 4;

// A warp a channel: f(a, b, i) for the two values of each segment i, dealt out to the lanes.
template <typename F>
__device__ __forceinline__ void over_parts(const double* parts, int64_t c, bool inside, int64_t segments, F&& f) {
  for (int64_t first = 0; first < segments; first += 32) {
    const int64_t i = first + threadIdx.x % 32;
    const bool reads = inside && i < segments;
    double pair[2];
    widen(load<2>(parts + (c * segments + i) * 2, reads), pair);
    f(pair[0], pair[1], i, reads);
  }
}

// First stage of the statistics: of each channel and segment the mean and the sum of squared deviations from it.
template <typename S, int kLanes, Layout kLayout>
__global__ void __launch_bounds__(kBatchNormThreads)
    batch_norm_act_statistics_kernel(const S* x, SumPlan p, double* parts) {
  using A = Accumulator<S>;
  using Thread = SumThread<kLanes, kLayout>;
  constexpr int kValues = Thread::kValues;
  __shared__ A shared[kValues][kBatchNormThreads];
  const Thread own(p);
  const int64_t tile = int64_t(p.rows) * kBatchNormFlight;
  Vec<S, kLanes> loaded[kBatchNormFlight];
  A center[kValues] = {}, sum[kValues] = {}, squares[kValues] = {};
  // f(value, which of the thread's channels) for every element of the tile
  const auto each = [&](int64_t first, auto f) {
#pragma unroll
    for (int k = 0; k < kBatchNormFlight; ++k) {
      A value[kLanes];
      widen(loaded[k], value);
      const bool inside = own.reads(p, first, k);
#pragma unroll
      for (int e = 0; e < kLanes; ++e) f(value[e], e % kValues, inside);
    }
  };
  own.load_tile(p, own.begin, x, loaded);
  each(own.begin, [&](A value, int v, bool) { center[v] += value; });  // what is not read is 0
  own.sum_rows(p, shared, center);
  const int64_t of_tile = own.end - own.begin < tile ? own.end - own.begin : tile;
  const A share = A(1) / A(of_tile * (kLanes / kValues));
#pragma unroll
  for (int v = 0; v < kValues; ++v) center[v] *= share;
  for (int64_t first = own.begin; first < own.end; first += tile) {
    if (first != own.begin) own.load_tile(p, first, x, loaded);
    each(first, [&](A value, int v, bool inside) {
      const A d = inside ? value - center[v] : A(0);
      sum[v] += d, squares[v] += d * d;
    });
  }
  own.sum_rows(p, shared, sum);
  own.sum_rows(p, shared, squares);
  double mean[kValues], m2[kValues];
#pragma unroll
  for (int v = 0; v < kValues; ++v) {
    const double deviation = double(sum[v]) / double((own.end - own.begin) * (kLanes / kValues));
    mean[v] = double(center[v]) + deviation, m2[v] = double(squares[v]) - double(sum[v]) * deviation;
  }
  own.store_parts(p, mean, m2, parts);
}

template <typename A> struct BatchNormStatistics {
  double momentum, eps;
  const A* running_mean;  // null: no running vectors
  const A* running_var;
  A* mean;
  A* invstd;
  A* new_mean;
  A* new_var;
};

// Second stage. `pixels` of a channel in segments of `length`, the last one shorter.
template <typename A>
__global__ void __launch_bounds__(32 * kWarpsOfMerge)
    batch_norm_act_merge_kernel(BatchNormStatistics<A> t, const double* parts, int64_t segments, int64_t length,
                                int64_t pixels, int64_t C) {
  const int64_t c = int64_t(blockIdx.x) * kWarpsOfMerge + threadIdx.x / 32;
  const bool inside = c < C;
  const double all = double(pixels > 0 ? pixels : 1);
  const auto count = [&](int64_t i) { return double((i + 1) * length < pixels ? length : pixels - i * length); };
  double total = 0.0, m2 = 0.0;
  over_parts(parts, c, inside, segments, [&](double mean, double, int64_t i, bool reads) {
    if (reads) total += mean * count(i);
  });
  const double mean = sum_of_warp(total) / all;
  over_parts(parts, c, inside, segments, [&](double of_part, double deviations, int64_t i, bool reads) {
    const double apart = of_part - mean;
    if (reads) m2 += deviations + apart * apart * count(i);
  });
  m2 = sum_of_warp(m2);
  const bool writes = inside && threadIdx.x % 32 == 0;
  store_one(t.mean, c, mean, writes);
  store_one(t.invstd, c, 1.0 / std::sqrt(m2 / all + t.eps), writes);
  if (t.running_mean == nullptr) return;
  const double old_mean = load_one(t.running_mean, c, writes), old_var = load_one(t.running_var, c, writes);
  const double unbiased = m2 / double(pixels > 1 ? pixels - 1 : 1);
  store_one(t.new_mean, c, old_mean + t.momentum * (mean - old_mean), writes);
  store_one(t.new_var, c, old_var + t.momentum * (unbiased - old_var), writes);
}

// parts: batch_norm_sums_size(...) doubles, at a multiple of 16 bytes.
template <typename S>
cudaError_t launch_batch_norm_act_statistics(const S* x, const BatchNormShape& s,
                                             const BatchNormStatistics<Accumulator<S>>& t, double* parts,
                                             cudaStream_t stream) {
  using A = Accumulator<S>;
  if (s.C == 0) return cudaSuccess;
  const auto merge = [&](int64_t segments, int64_t length) {
    return launch(&batch_norm_act_merge_kernel<A>, blocks_for(s.C, kWarpsOfMerge), dim3(32 * kWarpsOfMerge), 0, stream,
                  t, parts, segments, length, s.N * s.HW, s.C);
  };
  if (s.N * s.HW == 0) return merge(0, 1);
  return with_batch_norm_lanes<S>(s.layout, batch_norm_is_wide<kBatchNormLanes<S>>(s, x), [&](auto lanes, auto layout) {
    const SumPlan p = plan_sums<lanes()>(s);
    const cudaError_t error =
        launch(&batch_norm_act_statistics_kernel<S, lanes(), layout()>, dim3(unsigned(p.segments * p.chunks)),
               dim3(kBatchNormThreads), 0, stream, x, p, parts);
    if (error != cudaSuccess) return error;
    return merge(p.segments, p.length * (layout() == Layout::kNHWC ? 1 : lanes()));
  });
}

}  // namespace fastcnn
