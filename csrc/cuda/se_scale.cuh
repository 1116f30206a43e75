// SPDX-License-Identifier: Apache-2.0
// Squeeze-and-excitation. Forward: sums over the pixels (global_avg_pool.cuh), both layers and the gate in one small
// kernel, the scale; backward: the sums of grad * x, the layers again and their gradients, grad_x, and the gradients
// of the weights. Free of torch.
//
// x is read twice and written once (backward: x once, grad twice, grad_x written once), [N, tiles, C] sums and [N, C]
// scales besides. The sums may come from elsewhere: a producer of x can write them tile by tile.
//   gate     One image to `parts` blocks, of which each computes the hidden layer and its own part of the scales: more
//            blocks read w1 from the L2 rather than one block all of w2, where there are few images. A warp takes a
//            row of w1 in 16-byte vectors, 8 threads one of w2. Shared memory: C + R accumulators; backward, a block
//            an image, C + 2 R and one a thread.
//   weights  A thread sums one gradient over the images.
//   scale    As the pool's gradient: NHWC kTurns pixels a thread behind one load of the scale, NCHW y in order.
// Every sum runs in one order: the same bits each time.
#pragma once

#include "epilogue.cuh"
#include "global_avg_pool.cuh"

namespace fastcnn {

constexpr int kGateThreads = 512;
constexpr int kWeightThreads = 256;
constexpr int kScaleBlocks = 4;  // of 64 registers a thread: left to itself, ptxas 13.0 spills to make room for a fifth

template <typename W> struct SeLayers {  // W: storage type of weights and biases; all else is Accumulator<W>
  const W *w1, *b1, *w2, *b2;            // [R, C], [R], [C, R], [C]
  int64_t N;
  int C, R;
  bool wide1, wide2;  // rows of w1, w2 are whole vectors of 16 bytes
  Activation activation, gate;
};

template <typename W>
SeLayers<W> se_layers(const W* w1, const W* b1, const W* w2, const W* b2, int64_t N, int64_t C, int64_t R,
                      Activation activation, Activation gate) {
  const auto whole = [](int64_t length, const W* w) {
    return length % kVectorLanes<W> == 0 && is_aligned<kVectorBytes>(w);
  };
  return {w1, b1, w2, b2, N, int(C), int(R), whole(C, w1), whole(R, w2), activation, gate};
}

template <typename A> struct SeSums {  // of the planes of an image: [N, tiles, C], or [N, C] as one tile
  const A* partial;
  int64_t tiles;
};

template <typename A> struct SeBackward {
  A *scale, *grad_pooled, *grad_z2;  // [N, C]; grad_pooled for each pixel
  A *hidden, *grad_z1;               // [N, R]
};

// Accumulators of shared memory, of most_shared() bytes: 16,384 floats on Turing, 25,344 or more since.
inline int64_t se_gate_shared(int64_t C, int64_t R) { return C + R; }
inline int64_t se_gate_backward_shared(int64_t C, int64_t R) { return C + 2 * R + kGateThreads; }

template <typename A> __device__ __forceinline__ A activated(Activation kind, A x) {
  A lanes[1] = {x};
  activate(kind, lanes);
  return lanes[0];
}

template <typename A> __device__ __forceinline__ A slope(Activation kind, A x) {
  A lanes[1] = {x};
  differentiate(kind, lanes);
  return lanes[0];
}

template <typename W> __device__ __forceinline__ Accumulator<W> value_at(const W* p, bool predicate) {
  Accumulator<W> lanes[1];
  widen(load<1>(p, predicate), lanes);
  return lanes[0];
}
template <typename A> __device__ __forceinline__ void put(A* p, A value, bool predicate) {
  const A lanes[1] = {value};
  store(p, narrow<A>(lanes), predicate);
}

// f(c, the planes' sum of channel c), by thread.
template <typename A, typename F>
__device__ __forceinline__ void each_sum(const SeSums<A>& sums, int64_t n, int C, F f) {
  for (int base = 0; base < C; base += kGateThreads) {
    const int c = base + int(threadIdx.x);
    A total = 0;
#pragma unroll 4
    for (int64_t tile = 0; tile < sums.tiles; ++tile)
      total += value_at(sums.partial + (n * sums.tiles + tile) * C + c, c < C);
    f(c, total);
  }
}

// The sum over k of row[k] * vector[k], in each of `width` neighbouring threads; vector is in shared memory.
template <int kLanes, typename W>
__device__ __forceinline__ Accumulator<W> dot(const W* row, const Accumulator<W>* vector, int K, int width,
                                              bool inside) {
  using A = Accumulator<W>;
  A sum = 0;
#pragma unroll 4
  for (int base = 0; base < K; base += width * kLanes) {
    const int k = base + int(threadIdx.x) % width * kLanes;
    A lanes[kLanes];
    widen(load<kLanes>(row + k, inside && k < K), lanes);
    if (k >= K) continue;
#pragma unroll
    for (int e = 0; e < kLanes; ++e) sum += lanes[e] * vector[k + e];
  }
  for (int step = width / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  return sum;
}

// f(row, weight[row] . vector + bias[row]) for the rows from first on, in the first of the `width` threads of each.
template <typename W, typename F>
__device__ __forceinline__ void each_row(const W* weight, const W* bias, bool wide, const Accumulator<W>* vector,
                                         int first, int last, int K, int width, F f) {
  for (int base = first; base < last; base += kGateThreads / width) {
    const int row = base + int(threadIdx.x) / width;
    const bool inside = row < last;
    const W* at = weight + int64_t(row) * K;
    const Accumulator<W> sum = wide ? dot<kVectorLanes<W>>(at, vector, K, width, inside)
                                    : dot<1>(at, vector, K, width, inside);
    const bool leads = inside && int(threadIdx.x) % width == 0;
    f(row, sum + value_at(bias + row, leads), leads);
  }
}

// f(k, the sum over m of vector[m] * weight[m, k]): a column a thread where K is large, else the rows dealt out to as
// many threads as there are; vector and scratch, one value a thread, are in shared memory.
template <typename W, typename F>
__device__ __forceinline__ void each_column(const W* weight, const Accumulator<W>* vector, int M, int K,
                                            Accumulator<W>* scratch, F f) {
  for (int base = 0; base < K; base += kGateThreads) {
    const int width = min(K - base, kGateThreads), slices = kGateThreads / width;
    const int slice = int(threadIdx.x) / width, k = base + int(threadIdx.x) - slice * width;
    Accumulator<W> sum = 0;
#pragma unroll 4
    for (int first = 0; first < M; first += slices) {
      const int m = first + slice;
      const bool inside = slice < slices && m < M;
      const Accumulator<W> w = value_at(weight + int64_t(m) * K + k, inside);
      if (inside) sum += vector[m] * w;
    }
    scratch[threadIdx.x] = sum;
    __syncthreads();
    if (slice == 0)
      for (int other = 1; other < slices; ++other) sum += scratch[other * width + int(threadIdx.x)];
    f(k, sum, slice == 0);
    __syncthreads();
  }
}

// pooled = share * sums, scale = gate(w2 act(w1 pooled + b1) + b2).
template <typename W>
__global__ void __launch_bounds__(kGateThreads, 1)
    se_scale_gate_kernel(SeLayers<W> s, SeSums<Accumulator<W>> sums, Accumulator<W> share, Accumulator<W>* pooled,
                         Accumulator<W>* scale, int parts) {
  using A = Accumulator<W>;
  A *mean = dynamic_shared<A>(), *hidden = mean + s.C;
  const int64_t n = blockIdx.x / unsigned(parts);
  const int part = int(blockIdx.x % unsigned(parts));
  each_sum(sums, n, s.C, [&](int c, A total) {
    if (c < s.C) mean[c] = total * share;
    put(pooled + n * s.C + c, total * share, c < s.C && part == 0);
  });
  __syncthreads();
  each_row(s.w1, s.b1, s.wide1, mean, 0, s.R, s.C, 32, [&](int r, A z, bool leads) {
    if (leads) hidden[r] = activated(s.activation, z);
  });
  __syncthreads();
  const int length = (s.C + parts - 1) / parts, first = part * length;
  each_row(s.w2, s.b2, s.wide2, hidden, first, min(first + length, s.C), s.R, 8, [&](int c, A z, bool leads) {
    put(scale + n * s.C + c, activated(s.gate, z), leads);
  });
}

// From the sums of grad * x: what the gradients are made of. grad_pooled is times share.
template <typename W>
__global__ void __launch_bounds__(kGateThreads, 1)
    se_scale_gate_backward_kernel(SeLayers<W> s, SeSums<Accumulator<W>> sums, const Accumulator<W>* pooled,
                                  Accumulator<W> share, SeBackward<Accumulator<W>> out) {
  using A = Accumulator<W>;
  A *channels = dynamic_shared<A>(), *hidden = channels + s.C, *squeezed = hidden + s.R, *scratch = squeezed + s.R;
  const int64_t n = blockIdx.x;
  for (int base = 0; base < s.C; base += kGateThreads) {
    const int c = base + int(threadIdx.x);
    const A mean = value_at(pooled + n * s.C + c, c < s.C);
    if (c < s.C) channels[c] = mean;
  }
  __syncthreads();
  each_row(s.w1, s.b1, s.wide1, channels, 0, s.R, s.C, 32, [&](int r, A z1, bool leads) {
    if (leads) squeezed[r] = z1, hidden[r] = activated(s.activation, z1);
    put(out.hidden + n * s.R + r, activated(s.activation, z1), leads);
  });
  __syncthreads();
  each_row(s.w2, s.b2, s.wide2, hidden, 0, s.C, s.R, 8, [&](int c, A z2, bool leads) {
    if (leads) channels[c] = z2;
  });
  __syncthreads();
  each_sum(sums, n, s.C, [&](int c, A grad_scale) {
    const A z2 = c < s.C ? channels[c] : A(0), grad_z2 = grad_scale * slope(s.gate, z2);
    if (c < s.C) channels[c] = grad_z2;
    put(out.scale + n * s.C + c, activated(s.gate, z2), c < s.C);
    put(out.grad_z2 + n * s.C + c, grad_z2, c < s.C);
  });
  __syncthreads();
  each_column(s.w2, channels, s.C, s.R, scratch, [&](int r, A grad_hidden, bool leads) {
    const A grad_z1 = leads ? grad_hidden * slope(s.activation, squeezed[r]) : A(0);
    if (leads) squeezed[r] = grad_z1;
    put(out.grad_z1 + n * s.R + r, grad_z1, leads);
  });
  each_column(s.w1, squeezed, s.R, s.C, scratch, [&](int c, A grad, bool leads) {
    put(out.grad_pooled + n * s.C + c, grad * share, leads);
  });
}

template <typename W> struct SeWeightGradient {  // grad_w [M, K] = left' [M, N] right [N, K], grad_b [M] = left' 1
  const Accumulator<W> *left, *right;
  W *grad_w, *grad_b;
  int64_t M, K;
};

// Both layers' gradients: blockIdx.y is the layer, a thread computes one element of grad_w or grad_b.
template <typename W>
__global__ void __launch_bounds__(kWeightThreads)
    se_scale_weights_backward_kernel(SeWeightGradient<W> first, SeWeightGradient<W> second, int64_t N) {
  const SeWeightGradient<W> g = blockIdx.y == 0 ? first : second;
  const int64_t i = int64_t(blockIdx.x) * kWeightThreads + threadIdx.x, of_weight = g.M * g.K;
  const bool is_weight = i < of_weight, is_bias = !is_weight && i < of_weight + g.M;
  const int64_t m = is_weight ? i / g.K : i - of_weight, k = is_weight ? i - m * g.K : 0;
  Accumulator<W> sum[1] = {};
#pragma unroll 4
  for (int64_t n = 0; n < N; ++n) {
    const auto left = value_at(g.left + n * g.M + m, is_weight || is_bias);
    const auto right = value_at(g.right + n * g.K + k, is_weight);
    sum[0] += is_weight ? left * right : left;
  }
  store(is_weight ? g.grad_w + i : g.grad_b + m, narrow<W>(sum), is_weight || is_bias);
}

// y = x * scale[n, c] + offset[n, c]; -0 where there is no offset, which leaves each product as it is.
template <typename S, int kLanes>
__global__ void __launch_bounds__(kPoolThreads, kScaleBlocks)
    se_scale_pixels_kernel(const S* x, const Accumulator<S>* scale, const Accumulator<S>* offset, S* y, PlanePlan p) {
  constexpr int kRun = 4;
  using A = Accumulator<S>;
  const PixelThread t(p, kLanes);
  A factor[kLanes], add[kLanes] = {};
  load_lanes(scale + t.n * p.C + t.c, t.live, factor);
  if (offset != nullptr) load_lanes(offset + t.n * p.C + t.c, t.live, add);
#pragma unroll
  for (int e = 0; e < kLanes; ++e) add[e] = offset != nullptr ? add[e] : A(-0.0);
#pragma unroll 1
  for (int turn = 0; turn < p.turns; turn += kRun) {
    Vec<S, kLanes> v[kRun];
#pragma unroll
    for (int k = 0; k < kRun; ++k) v[k] = load<kLanes>(x + t.at(p, turn + k), t.reads(p, turn + k));
#pragma unroll
    for (int k = 0; k < kRun; ++k) {
      A lanes[kLanes];
      widen(v[k], lanes);
#pragma unroll
      for (int e = 0; e < kLanes; ++e) lanes[e] = fma(lanes[e], factor[e], add[e]);
      store(y + t.at(p, turn + k), narrow<S>(lanes), t.reads(p, turn + k));
    }
  }
}

template <typename S, int kLanes>
__global__ void __launch_bounds__(kPoolThreads)
    se_scale_planes_kernel(const S* x, const Accumulator<S>* scale, const Accumulator<S>* offset, S* y, PlanePlan p) {
  using A = Accumulator<S>;
  const PlaneVector t(p, kLanes);
  A factor[2], add[2] = {A(-0.0), A(-0.0)}, lanes[kLanes];
  widen(load<kLanes>(x + t.at, t.inside), lanes);
  t.load_pair(scale, factor, kLanes);
  if (offset != nullptr) t.load_pair(offset, add, kLanes);
#pragma unroll
  for (int e = 0; e < kLanes; ++e)
    lanes[e] = fma(lanes[e], e < t.cut ? factor[0] : factor[1], e < t.cut ? add[0] : add[1]);
  store(y + t.at, narrow<S>(lanes), t.inside);
}

// y = x * scale[n, c] + offset[n, c]; offset may be null.
template <typename S>
cudaError_t launch_se_scale(Layout layout, int64_t N, int64_t C, int64_t HW, const S* x, const Accumulator<S>* scale,
                            const Accumulator<S>* offset, S* y, cudaStream_t stream) {
  constexpr int kLanes = kVectorLanes<S>;
  const bool aligned = is_aligned<kVectorBytes>(x) && is_aligned<kVectorBytes>(y);
  if (layout == Layout::kNHWC) {
    constexpr int kTurns = 4;
    const bool wide = C % kLanes == 0 && aligned && is_aligned<kVectorBytes>(scale) && is_aligned<kVectorBytes>(offset);
    const PlanePlan p = plan_pixels(N, C, HW, wide, wide ? kLanes : 1, kTurns, HW);
    return launch(wide ? &se_scale_pixels_kernel<S, kLanes> : &se_scale_pixels_kernel<S, 1>, plan_grid(p),
                  dim3(kPoolThreads), 0, stream, x, scale, offset, y, p);
  }
  const bool wide = HW >= kLanes && N * C * HW % kLanes == 0 && aligned;
  PlanePlan p{};
  p.N = N, p.C = C, p.HW = HW;
  return launch(wide ? &se_scale_planes_kernel<S, kLanes> : &se_scale_planes_kernel<S, 1>,
                blocks_for(N * C * HW, int64_t(kPoolThreads) * (wide ? kLanes : 1)), dim3(kPoolThreads), 0, stream, x,
                scale, offset, y, p);
}

// pooled and scale, [N, C] each, from sums of x. se_gate_shared of them fit into most_shared().
template <typename W, typename A = Accumulator<W>>
cudaError_t launch_se_gate(const SeLayers<W>& s, const SeSums<A>& sums, A share, A* pooled, A* scale,
                           cudaStream_t stream) {
  constexpr int64_t kBlocksThatFill = 132, kRows = kGateThreads / 8;
  const int64_t wanted = ceil_div(kBlocksThatFill, s.N), most = ceil_div(s.C, kRows);
  const int parts = int(wanted < most ? wanted : most);
  return launch(&se_scale_gate_kernel<W>, dim3(unsigned(s.N * parts)), dim3(kGateThreads),
                sizeof(A) * size_t(se_gate_shared(s.C, s.R)), stream, s, sums, share, pooled, scale, parts);
}

template <typename W, typename A = Accumulator<W>>
cudaError_t launch_se_gate_backward(const SeLayers<W>& s, const SeSums<A>& sums, const A* pooled, A share,
                                    const SeBackward<A>& out, cudaStream_t stream) {
  return launch(&se_scale_gate_backward_kernel<W>, dim3(unsigned(s.N)), dim3(kGateThreads),
                sizeof(A) * size_t(se_gate_backward_shared(s.C, s.R)), stream, s, sums, pooled, share, out);
}

// The gradients of both layers; zeros for N = 0. C > 0 or R > 0.
template <typename W, typename A = Accumulator<W>>
cudaError_t launch_se_weights_backward(int64_t N, int64_t C, int64_t R, const SeBackward<A>& from, const A* pooled,
                                       W* grad_w1, W* grad_b1, W* grad_w2, W* grad_b2, cudaStream_t stream) {
  const SeWeightGradient<W> first = {from.grad_z1, pooled, grad_w1, grad_b1, R, C};
  const SeWeightGradient<W> second = {from.grad_z2, from.hidden, grad_w2, grad_b2, C, R};
  const dim3 blocks = blocks_for(C * R + (C > R ? C : R), kWeightThreads);
  return launch(&se_scale_weights_backward_kernel<W>, dim3(blocks.x, 2), dim3(kWeightThreads), 0, stream, first,
                second, N);
}

}  // namespace fastcnn
