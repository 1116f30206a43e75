// SPDX-License-Identifier: Apache-2.0
// Sums over the pixels of each plane: global average pooling and its gradient, and what se_scale.cuh takes from here.
// Free of torch.
//
// Forward reads x once, backward writes grad_x once, [N, C] besides. Two stages without atomics: the pixels of an image
// are split into `tiles` by shape alone, a tile's sum goes to [N, tiles, C] in the accumulator's type, and a second
// launch, of the NHWC kernel over those, adds the tiles up. One tile, 7x7 for one, is one launch.
//   NHWC  A thread owns a vector of kLanes channels (16 bytes), `chunk` of them lie side by side in a block, and `rows`
//         pixels; it takes each rows-th pixel of its tile, kPoolRun loads under way. The rows are added up in shared
//         memory, by halves: kLanes accumulators a thread, 8 KiB.
//   NCHW  8 to 32 threads own a part of a plane, which may begin anywhere: elements up to the first 16-byte boundary,
//         vectors, the elements left over. They are added up by shuffles.
// No sum runs over more than kPoolRun values before it is added to the next one: the error hardly grows with the number
// of pixels. Backward in NCHW goes over y in order: a vector that a plane's end cuts takes from two planes.
#pragma once

#include "../common/shape.h"
#include "vec.cuh"

namespace fastcnn {

constexpr int kPoolThreads = 256;
constexpr int kPoolRun = 4;  // loads under way; at 8 ptxas 13.0 spills for sm_90

struct PlanePlan {
  Layout layout;
  bool wide;  // vectors of 16 bytes
  int64_t N, C, HW, tiles;
  int chunk, chunks, rows, turns;  // NHWC: a tile is rows * turns pixels
  int width, trips;                // NCHW: threads of a tile, vectors of a thread
  int64_t length;                  // NCHW: elements of a tile
};

// kLanes values of the accumulator's type, however many accesses they are.
template <typename S, int kLanes>
__device__ __forceinline__ void load_lanes(const S* p, bool predicate, Accumulator<S> (&lanes)[kLanes]) {
  constexpr int kPart = kLanes < kVectorLanes<S> ? kLanes : kVectorLanes<S>;
#pragma unroll
  for (int i = 0; i < kLanes; i += kPart) {
    Accumulator<S> part[kPart];
    widen(load<kPart>(p + i, predicate), part);
#pragma unroll
    for (int e = 0; e < kPart; ++e) lanes[i + e] = part[e];
  }
}
template <typename S, int kLanes>
__device__ __forceinline__ void store_lanes(S* p, const Accumulator<S> (&lanes)[kLanes], bool predicate) {
  constexpr int kPart = kLanes < kVectorLanes<S> ? kLanes : kVectorLanes<S>;
#pragma unroll
  for (int i = 0; i < kLanes; i += kPart) {
    Accumulator<S> part[kPart];
#pragma unroll
    for (int e = 0; e < kPart; ++e) part[e] = lanes[i + e];
    store(p + i, narrow<S>(part), predicate);
  }
}

// A thread's share of an image in NHWC: channels from c on, pixels pixel, pixel + rows, ... of its tile.
struct PixelThread {
  int row, c;
  int64_t n, tile, pixel;
  bool live;

  __device__ __forceinline__ PixelThread(const PlanePlan& p, int lanes) {
    const unsigned group = blockIdx.x % unsigned(p.chunks), rest = blockIdx.x / unsigned(p.chunks);
    row = int(threadIdx.x) / p.chunk;
    const int unit = int(group) * p.chunk + int(threadIdx.x) - row * p.chunk;
    n = rest / unsigned(p.tiles), tile = rest % unsigned(p.tiles);
    c = unit * lanes, pixel = tile * p.rows * p.turns + row;
    live = row < p.rows && c < p.C;
  }
  __device__ __forceinline__ bool reads(const PlanePlan& p, int turn) const {
    return live && turn < p.turns && pixel + int64_t(turn) * p.rows < p.HW;
  }
  __device__ __forceinline__ int64_t at(const PlanePlan& p, int turn) const {
    return (n * p.HW + pixel + int64_t(turn) * p.rows) * p.C + c;
  }
};

// Adds up vectors of x, or of x * other: the turns that `reads` names, from the offsets that `at` does.
template <bool kProduct, int kLanes, typename S, typename Reads, typename At>
__device__ __forceinline__ void add_vectors(const S* x, const S* other, int turns, Accumulator<S> (&total)[kLanes],
                                            Reads reads, At at) {
#pragma unroll 1
  for (int turn = 0; turn < turns; turn += kPoolRun) {
    Vec<S, kLanes> v[kPoolRun], w[kPoolRun];
#pragma unroll
    for (int k = 0; k < kPoolRun; ++k) {
      v[k] = load<kLanes>(x + at(turn + k), reads(turn + k));
      if constexpr (kProduct) w[k] = load<kLanes>(other + at(turn + k), reads(turn + k));
    }
    Accumulator<S> sum[kLanes] = {};
#pragma unroll
    for (int k = 0; k < kPoolRun; ++k) {
      Accumulator<S> a[kLanes], b[kLanes];
      widen(v[k], a);
      if constexpr (kProduct) widen(w[k], b);
#pragma unroll
      for (int e = 0; e < kLanes; ++e) sum[e] += kProduct ? a[e] * b[e] : a[e];
    }
#pragma unroll
    for (int e = 0; e < kLanes; ++e) total[e] += sum[e];
  }
}

// out[n, tile, c] = share * the tile's sum of x, or of x * other.
template <typename S, typename Out, int kLanes, bool kProduct>
__global__ void __launch_bounds__(kPoolThreads)
    global_avg_pool_pixels_kernel(const S* x, const S* other, Out* out, PlanePlan p, Accumulator<S> share) {
  __shared__ Accumulator<S> partial[kLanes][kPoolThreads];
  const PixelThread t(p, kLanes);
  Accumulator<S> total[kLanes] = {};
  add_vectors<kProduct>(
      x, other, p.turns, total, [&](int turn) { return t.reads(p, turn); }, [&](int turn) { return t.at(p, turn); });
#pragma unroll
  for (int e = 0; e < kLanes; ++e) partial[e][threadIdx.x] = total[e];
  for (int active = p.rows; active > 1; active = (active + 1) / 2) {
    const int half = (active + 1) / 2;
    __syncthreads();
    if (t.row + half >= active) continue;
#pragma unroll
    for (int e = 0; e < kLanes; ++e) {
      total[e] += partial[e][int(threadIdx.x) + half * p.chunk];
      partial[e][threadIdx.x] = total[e];
    }
  }
#pragma unroll
  for (int e = 0; e < kLanes; ++e) total[e] *= share;
  store_lanes(out + (t.n * p.tiles + t.tile) * p.C + t.c, total, t.live && t.row == 0);
}

template <typename S, typename Out, int kLanes, bool kProduct>
__global__ void __launch_bounds__(kPoolThreads)
    global_avg_pool_planes_kernel(const S* x, const S* other, Out* out, PlanePlan p, Accumulator<S> share) {
  const int lane = int(threadIdx.x) % p.width;
  const int64_t task = (int64_t(blockIdx.x) * kPoolThreads + threadIdx.x) / p.width;
  const int64_t plane = task / p.tiles, tile = task - plane * p.tiles, n = plane / p.C;
  const int64_t begin = tile * p.length, left = p.HW - begin;
  const int count = plane < p.N * p.C ? int(left < p.length ? left : p.length) : 0;
  x += plane * p.HW + begin;
  if constexpr (kProduct) other += plane * p.HW + begin;

  int head = 0, vectors = count;
  Accumulator<S> total[kLanes] = {};
  if constexpr (kLanes > 1) {
    head = int(-(reinterpret_cast<uintptr_t>(x) / sizeof(S)) % kLanes);
    head = head < count ? head : count, vectors = (count - head) / kLanes;
    const auto add_edge = [&](int at, bool inside) {
      Accumulator<S> a[1], b[1] = {Accumulator<S>(1)};
      widen(load<1>(x + at, inside), a);
      if constexpr (kProduct) widen(load<1>(other + at, inside), b);
      if (inside) total[0] += a[0] * b[0];
    };
    add_edge(lane, lane < head);
    add_edge(head + vectors * kLanes + lane, head + vectors * kLanes + lane < count);
  }
  add_vectors<kProduct>(
      x, other, p.trips, total, [&](int trip) { return lane + trip * p.width < vectors; },
      [&](int trip) { return head + (lane + trip * p.width) * kLanes; });
  Accumulator<S> sum[1] = {};
#pragma unroll
  for (int e = 0; e < kLanes; ++e) sum[0] += total[e];
  for (int step = p.width / 2; step > 0; step /= 2) sum[0] += __shfl_xor_sync(0xffffffffu, sum[0], step);
  sum[0] *= share;
  store(out + (n * p.tiles + tile) * p.C + plane - n * p.C, narrow<Out>(sum), lane == 0 && count > 0);
}

// grad_x[n, pixel, c] = share * grad[n, c]
template <typename S, int kLanes>
__global__ void __launch_bounds__(kPoolThreads)
    global_avg_pool_backward_pixels_kernel(const S* grad, S* grad_x, PlanePlan p, Accumulator<S> share) {
  const PixelThread t(p, kLanes);
  Accumulator<S> lanes[kLanes];
  widen(load<kLanes>(grad + t.n * p.C + t.c, t.live), lanes);
#pragma unroll
  for (int e = 0; e < kLanes; ++e) lanes[e] *= share;
  const auto v = narrow<S>(lanes);
#pragma unroll 4
  for (int turn = 0; turn < p.turns; ++turn) store(grad_x + t.at(p, turn), v, t.reads(p, turn));
}

// A vector of y in NCHW, by its place in memory: lanes up to `cut` lie in `plane`, the others in the next one.
struct PlaneVector {
  int64_t at, plane;
  int cut;
  bool inside;

  __device__ __forceinline__ PlaneVector(const PlanePlan& p, int lanes) {
    at = (int64_t(blockIdx.x) * kPoolThreads + threadIdx.x) * lanes, plane = at / p.HW;
    const int64_t rest = (plane + 1) * p.HW - at;
    cut = int(rest < lanes ? rest : lanes), inside = at < p.N * p.C * p.HW;
  }
  // of [N, C]: the values of both planes
  template <typename S>
  __device__ __forceinline__ void load_pair(const S* of, Accumulator<S> (&pair)[2], int lanes) const {
    Accumulator<S> one[1];
    widen(load<1>(of + plane, inside), one), pair[0] = one[0];
    widen(load<1>(of + plane + 1, inside && cut < lanes), one), pair[1] = one[0];
  }
};

template <typename S, int kLanes>
__global__ void __launch_bounds__(kPoolThreads)
    global_avg_pool_backward_planes_kernel(const S* grad, S* grad_x, PlanePlan p, Accumulator<S> share) {
  const PlaneVector t(p, kLanes);
  Accumulator<S> pair[2], lanes[kLanes];
  t.load_pair(grad, pair, kLanes);
#pragma unroll
  for (int e = 0; e < kLanes; ++e) lanes[e] = (e < t.cut ? pair[0] : pair[1]) * share;
  store(grad_x + t.at, narrow<S>(lanes), t.inside);
}

// NHWC: a tile of `turns` pixels a thread, more where that would be more than `most` tiles.
inline PlanePlan plan_pixels(int64_t N, int64_t C, int64_t HW, bool wide, int lanes, int64_t turns, int64_t most) {
  PlanePlan p{};
  p.layout = Layout::kNHWC, p.wide = wide, p.N = N, p.C = C, p.HW = HW;
  const int64_t units = C / lanes, widest = lanes > 1 ? 32 : 128;
  const int64_t even = units % 2 == 0 ? 2 : 1;  // blocks begin at a sector's boundary
  p.chunk = int(ceil_div(ceil_div(units, ceil_div(units, widest)), even) * even);
  p.chunks = int(ceil_div(units, p.chunk));
  p.rows = kPoolThreads / p.chunk;
  const int64_t tiles = ceil_div(HW, p.rows * turns);
  p.turns = int(ceil_div(HW, p.rows * (tiles < most ? tiles : most)));
  p.tiles = ceil_div(HW, int64_t(p.rows) * p.turns);
  return p;
}

inline PlanePlan plan_planes(int64_t N, int64_t C, int64_t HW, bool wide, int lanes, int64_t most) {
  constexpr int64_t kLength = 2048, kRound = 64;
  PlanePlan p{};
  p.layout = Layout::kNCHW, p.wide = wide, p.N = N, p.C = C, p.HW = HW;
  const int64_t tiles = ceil_div(HW, kLength);
  p.length = ceil_div(ceil_div(HW, tiles < most ? tiles : most), kRound) * kRound;
  p.tiles = ceil_div(HW, p.length);
  const int64_t vectors = ceil_div(HW < p.length ? HW : p.length, lanes);
  for (p.width = 8; p.width < 32 && p.width * 2 <= vectors;) p.width *= 2;
  p.trips = int(ceil_div(vectors, p.width));
  return p;
}

constexpr int64_t kPoolMostTiles = 32;  // the second stage, in the gate of se_scale too, adds them up one by one

// How x, or the product with other, is summed up. HW, N and C > 0.
template <typename S>
PlanePlan plan_plane_sums(Layout layout, int64_t N, int64_t C, int64_t HW, const S* x, const S* other) {
  constexpr int kLanes = kVectorLanes<S>;
  if (layout == Layout::kNHWC) {
    const bool wide = C % kLanes == 0 && is_aligned<kVectorBytes>(x) && is_aligned<kVectorBytes>(other);
    return plan_pixels(N, C, HW, wide, wide ? kLanes : 1, 8, kPoolMostTiles);
  }
  // both reach a 16-byte boundary after as many elements
  const auto place = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % kVectorBytes; };
  const bool wide = other == nullptr || place(x) == place(other);
  return plan_planes(N, C, HW, wide, wide ? kLanes : 1, kPoolMostTiles);
}

inline dim3 plan_grid(const PlanePlan& p) {
  if (p.layout == Layout::kNHWC) return dim3(unsigned(p.N * p.tiles * p.chunks));
  return blocks_for(p.N * p.C * p.tiles * p.width, kPoolThreads);
}

// out[n, tile, c] = share * the tile's sum of x, of x * other where kProduct.
template <typename S, typename Out, bool kProduct>
cudaError_t launch_plane_sums(const PlanePlan& p, const S* x, const S* other, Out* out, Accumulator<S> share,
                              cudaStream_t stream) {
  constexpr int kLanes = kVectorLanes<S>;
  const auto kernel =
      p.layout == Layout::kNHWC
          ? p.wide ? &global_avg_pool_pixels_kernel<S, Out, kLanes, kProduct>
                   : &global_avg_pool_pixels_kernel<S, Out, 1, kProduct>
          : p.wide ? &global_avg_pool_planes_kernel<S, Out, kLanes, kProduct>
                   : &global_avg_pool_planes_kernel<S, Out, 1, kProduct>;
  return launch(kernel, plan_grid(p), dim3(kPoolThreads), 0, stream, x, other, out, p, share);
}

// y[n, c] = the mean of x; `partial` is [N, tiles, C] of the plan, not needed for one tile.
template <typename S>
cudaError_t launch_global_avg_pool(const PlanePlan& p, const S* x, Accumulator<S>* partial, S* y, cudaStream_t stream) {
  using A = Accumulator<S>;
  const A share = A(1.0 / double(p.HW));
  if (p.tiles == 1) return launch_plane_sums<S, S, false>(p, x, nullptr, y, share, stream);
  const cudaError_t error = launch_plane_sums<S, A, false>(p, x, nullptr, partial, A(1), stream);
  if (error != cudaSuccess) return error;
  const PlanePlan second = plan_pixels(p.N, p.C, p.tiles, false, 1, p.tiles, 1);
  return launch(&global_avg_pool_pixels_kernel<A, S, 1, false>, plan_grid(second), dim3(kPoolThreads), 0, stream,
                partial, nullptr, y, second, share);
}

// grad_x = grad[n, c] / HW
template <typename S>
cudaError_t launch_global_avg_pool_backward(Layout layout, int64_t N, int64_t C, int64_t HW, const S* grad, S* grad_x,
                                            cudaStream_t stream) {
  constexpr int kLanes = kVectorLanes<S>;
  const Accumulator<S> share = Accumulator<S>(1.0 / double(HW));
  const bool aligned = is_aligned<kVectorBytes>(grad_x);
  if (layout == Layout::kNHWC) {
    const bool wide = C % kLanes == 0 && aligned && is_aligned<kVectorBytes>(grad);
    const PlanePlan p = plan_pixels(N, C, HW, wide, wide ? kLanes : 1, 4, HW);
    const auto kernel =
        wide ? &global_avg_pool_backward_pixels_kernel<S, kLanes> : &global_avg_pool_backward_pixels_kernel<S, 1>;
    return launch(kernel, plan_grid(p), dim3(kPoolThreads), 0, stream, grad, grad_x, p, share);
  }
  const bool wide = HW >= kLanes && N * C * HW % kLanes == 0 && aligned;
  PlanePlan p{};
  p.N = N, p.C = C, p.HW = HW;
  const auto kernel =
      wide ? &global_avg_pool_backward_planes_kernel<S, kLanes> : &global_avg_pool_backward_planes_kernel<S, 1>;
  return launch(kernel, blocks_for(N * C * HW, int64_t(kPoolThreads) * (wide ? kLanes : 1)), dim3(kPoolThreads), 0,
                stream, grad, grad_x, p, share);
}

}  // namespace fastcnn
