// SPDX-License-Identifier: Apache-2.0
// Batch norm with residual and activation, forward: fold and apply. Free of torch. Statistics: batch_norm_act_sums.cuh.
//
// Apply: y = act(x * scale[c] + shift[c] + residual), each element read once (and the residual once) and written once.
// A tensor is rows of `period` vectors of 16 bytes that repeat the channels: the pixels of NHWC, the images of NCHW. A
// thread takes one place in kFlight rows, so scale and shift are read once for all of them and every load of a thread
// is in flight at once; neighbouring threads are neighbours in memory, whatever C is. Requested: 1 read (2 with a
// residual) and 1 write of the tensor, and for every kFlight vectors kLanes (NHWC) or 1 (NCHW) values of scale and
// shift.
//
// Where C (NHWC), H W (NCHW) or an address does not allow vectors, and for double, kLanes is 1.
#pragma once

#include <type_traits>

#include "../common/shape.h"
#include "epilogue.cuh"
#include "vec.cuh"

namespace fastcnn {

constexpr int kBatchNormThreads = 256;
// On a multiprocessor, 80 registers a thread; where ptxas chooses for itself, it spills at 64 on sm_100.
constexpr int kBatchNormBlocks = 3;
constexpr int kBatchNormFlight = 4;  // vectors of one tensor that a thread has in flight
// double serves gradient checks, not speed: one path less to compile
template <typename S> constexpr int kBatchNormLanes = sizeof(S) == sizeof(double) ? 1 : kVectorLanes<S>;

struct BatchNormShape {
  Layout layout;
  int64_t N, C, HW;
};

template <typename S> struct BatchNormTensors {
  using A = Accumulator<S>;
  const S* x;
  const A* scale;     // [C], or null for 1
  const A* shift;     // [C], or null for 0
  const S* residual;  // or null
  S* y;
};

// Whether kLanes elements of each tensor are a vector: 16 bytes of one place that all tensors share.
template <int kLanes, typename... Pointers>
bool batch_norm_is_wide(const BatchNormShape& s, Pointers... pointers) {
  return (s.layout == Layout::kNHWC ? s.C : s.HW) % kLanes == 0 && (is_aligned<kVectorBytes>(pointers) && ...);
}

// One pixel an image: both layouts are the same memory, and only channels have the length of a vector.
inline BatchNormShape batch_norm_shape(Layout layout, int64_t N, int64_t C, int64_t HW) {
  return {HW == 1 ? Layout::kNHWC : layout, N, C, HW};
}

// What the lanes of a vector take of a [C] array: kLanes neighbours from c on (NHWC), or the value at c (NCHW).
template <Layout kLayout, typename A, int kLanes>
__device__ __forceinline__ void load_channels(const A* array, int64_t c, bool inside, A (&lanes)[kLanes]) {
  constexpr int kTogether = kLayout == Layout::kNCHW ? 1 : kLanes < kVectorLanes<A> ? kLanes : kVectorLanes<A>;
#pragma unroll
  for (int i = 0; i < (kLayout == Layout::kNCHW ? 1 : kLanes / kTogether); ++i) {
    A part[kTogether];
    widen(load<kTogether>(array + c + i * kTogether, inside), part);
#pragma unroll
    for (int e = 0; e < kTogether; ++e) lanes[i * kTogether + e] = part[e];
  }
  if constexpr (kLayout == Layout::kNCHW) {
#pragma unroll
    for (int e = 1; e < kLanes; ++e) lanes[e] = lanes[0];
  }
}

// A tensor as rows of vectors; a thread takes the rows row, row + step, row + 2 step, ... at one place.
struct RowPlan {
  int64_t rows, period, of_channel;  // of_channel: vectors of a channel in a row, NCHW
  int64_t step;
};

template <int kLanes> RowPlan plan_rows(const BatchNormShape& s, int flight) {
  const bool nhwc = s.layout == Layout::kNHWC;
  const int64_t rows = nhwc ? s.N * s.HW : s.N, of_channel = nhwc ? 1 : s.HW / kLanes;
  return {rows, nhwc ? s.C / kLanes : s.C * of_channel, of_channel, ceil_div(rows, flight)};
}

inline dim3 blocks_of(const RowPlan& p) { return blocks_for(p.step * p.period, kBatchNormThreads); }

template <int kLanes, Layout kLayout> struct RowThread {
  int64_t row, place, channel;
  bool inside;

  __device__ __forceinline__ explicit RowThread(const RowPlan& p) {
    const int64_t own = int64_t(blockIdx.x) * kBatchNormThreads + threadIdx.x;
    row = own / p.period, place = own - row * p.period, inside = row < p.step;
    channel = kLayout == Layout::kNHWC ? place * kLanes : place / p.of_channel;
  }
  __device__ __forceinline__ bool has(const RowPlan& p, int k) const { return inside && row + k * p.step < p.rows; }
  __device__ __forceinline__ int64_t offset(const RowPlan& p, int k) const {
    return ((row + k * p.step) * p.period + place) * kLanes;
  }
};

template <typename S, int kLanes, Layout kLayout>
__global__ void __launch_bounds__(kBatchNormThreads, kBatchNormBlocks)
    batch_norm_act_forward_kernel(BatchNormTensors<S> t, RowPlan p, Activation activation) {
  using A = Accumulator<S>;
  const RowThread<kLanes, kLayout> own(p);
  Vec<S, kLanes> x[kBatchNormFlight], residual[kBatchNormFlight];
#pragma unroll
  for (int k = 0; k < kBatchNormFlight; ++k) x[k] = load<kLanes>(t.x + own.offset(p, k), own.has(p, k));
  if (t.residual != nullptr) {
#pragma unroll
    for (int k = 0; k < kBatchNormFlight; ++k)
      residual[k] = load<kLanes>(t.residual + own.offset(p, k), own.has(p, k));
  }
  A scale[kLanes], shift[kLanes] = {};
#pragma unroll
  for (int e = 0; e < kLanes; ++e) scale[e] = A(1);
  if (t.scale != nullptr) load_channels<kLayout>(t.scale, own.channel, own.inside, scale);
  if (t.shift != nullptr) load_channels<kLayout>(t.shift, own.channel, own.inside, shift);
#pragma unroll
  for (int k = 0; k < kBatchNormFlight; ++k) {
    A value[kLanes];
    widen(x[k], value);
#pragma unroll
    for (int e = 0; e < kLanes; ++e) value[e] = value[e] * scale[e] + shift[e];
    if (t.residual != nullptr) {
      A more[kLanes];
      widen(residual[k], more);
#pragma unroll
      for (int e = 0; e < kLanes; ++e) value[e] += more[e];
    }
    activate(activation, value);
    store(t.y + own.offset(p, k), narrow<S>(value), own.has(p, k));
  }
}

// Calls f(lanes, layout), two integral constants, for the kernel that takes this shape.
template <typename S, typename F> cudaError_t with_batch_norm_lanes(Layout layout, bool wide, F&& f) {
  using One = std::integral_constant<int, 1>;
  using Wide = std::integral_constant<int, kBatchNormLanes<S>>;
  using Nhwc = std::integral_constant<Layout, Layout::kNHWC>;
  using Nchw = std::integral_constant<Layout, Layout::kNCHW>;
  if (layout == Layout::kNHWC) return wide ? f(Wide(), Nhwc()) : f(One(), Nhwc());
  return wide ? f(Wide(), Nchw()) : f(One(), Nchw());
}

// The tensors are dense in the shape's layout and have at least one element.
template <typename S>
cudaError_t launch_batch_norm_act_forward(const BatchNormTensors<S>& t, const BatchNormShape& s, Activation activation,
                                          cudaStream_t stream) {
  const bool wide = batch_norm_is_wide<kBatchNormLanes<S>>(s, t.x, t.residual, t.y, t.scale, t.shift);
  return with_batch_norm_lanes<S>(s.layout, wide, [&](auto lanes, auto layout) {
    const RowPlan p = plan_rows<lanes()>(s, kBatchNormFlight);
    return launch(&batch_norm_act_forward_kernel<S, lanes(), layout()>, blocks_of(p), dim3(kBatchNormThreads), 0,
                  stream, t, p, activation);
  });
}

template <typename A> struct BatchNormFold {
  const A* weight;    // null: 1
  const A* bias;      // null: 0
  const A* mean;
  const A* variance;  // null: invstd is given
  const A* invstd;
  double eps;
  A* scale;
  A* shift;
};

template <typename A> __device__ __forceinline__ A load_one(const A* array, int64_t c, bool inside) {
  A value[1];
  widen(load<1>(array + c, inside), value);
  return value[0];
}

template <typename A> __device__ __forceinline__ void store_one(A* array, int64_t c, double value, bool inside) {
  const A one[1] = {A(value)};
  store(array + c, narrow<A>(one), inside);
}

// A thread a channel: scale = weight * invstd, shift = bias - mean * scale, in double.
template <typename A>
__global__ void __launch_bounds__(kBatchNormThreads) batch_norm_act_fold_kernel(BatchNormFold<A> t, int64_t C) {
  const int64_t c = int64_t(blockIdx.x) * kBatchNormThreads + threadIdx.x;
  const bool inside = c < C;
  double factor = t.variance == nullptr ? double(load_one(t.invstd, c, inside))
                                        : 1.0 / std::sqrt(double(load_one(t.variance, c, inside)) + t.eps);
  if (t.weight != nullptr) factor *= double(load_one(t.weight, c, inside));
  const double bias = t.bias == nullptr ? 0.0 : double(load_one(t.bias, c, inside));
  store_one(t.scale, c, factor, inside);
  // with the rounded scale, so that its rounding error multiplies x - mean and not x
  store_one(t.shift, c, bias - double(load_one(t.mean, c, inside)) * double(A(factor)), inside);
}

template <typename A>
cudaError_t launch_batch_norm_act_fold(const BatchNormFold<A>& t, int64_t C, cudaStream_t stream) {
  if (C == 0) return cudaSuccess;
  return launch(&batch_norm_act_fold_kernel<A>, blocks_for(C, kBatchNormThreads), dim3(kBatchNormThreads), 0, stream, t,
                C);
}

}  // namespace fastcnn
