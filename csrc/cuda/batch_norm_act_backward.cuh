// SPDX-License-Identifier: Apache-2.0
// Batch norm + residual + activation, backward. With gz = grad * act'(x * scale + shift + residual):
//   grad_bias = sum gz,  grad_weight = sum gz * (x - mean) * invstd,  grad_residual = gz,
//   grad_x = scale * gz                                              (eval)
//   grad_x = scale * gz - constant - slope * (x - mean)              (training; constant and slope from the sums)
// Free of torch.
//
// Two passes, neither of which keeps the activation: the sums (batch_norm_act_sums.cuh), 2 reads an element (3 with a
// residual), left out in eval when no vector wants a gradient; then grad_x and grad_residual, 2 or 3 reads and 1 or 2
// writes, tiled as apply is. kFlight vectors of each tensor are in flight: 2 of 2 or 3 tensors are as many bytes as
// apply's 4 of one, and leave the registers that gz needs.
#pragma once

#include "batch_norm_act_sums.cuh"

namespace fastcnn {

constexpr int kBatchNormBackwardFlight = 2;
// On a multiprocessor, 128 registers a thread; where ptxas chooses for itself, it spills at 80.
constexpr int kBatchNormBackwardBlocks = 2;

template <typename S> struct BatchNormBackward {
  using A = Accumulator<S>;
  const S* grad;
  const S* x;
  const S* residual;  // or null
  const A* scale;     // [C], as are the next two
  const A* shift;
  const A* mean;
  const A* constant;  // [C], or null in eval
  const A* slope;     // [C], or null in eval
  S* grad_x;          // null: not wanted
  S* grad_residual;   // null: not wanted
};

// What a thread has loaded of one vector of each tensor, and gz from it.
template <typename S, int kLanes> struct BackwardVectors {
  using A = Accumulator<S>;
  Vec<S, kLanes> grad, x, residual;

  __device__ __forceinline__ void load_from(const BatchNormBackward<S>& t, int64_t offset, bool inside) {
    grad = load<kLanes>(t.grad + offset, inside);
    x = load<kLanes>(t.x + offset, inside);
    if (t.residual != nullptr) residual = load<kLanes>(t.residual + offset, inside);
  }
  __device__ __forceinline__ void gradient_of_z(const BatchNormBackward<S>& t, Activation activation,
                                                const A (&value)[kLanes], const A (&scale)[kLanes],
                                                const A (&shift)[kLanes], A (&gz)[kLanes]) const {
    A z[kLanes];
#pragma unroll
    for (int e = 0; e < kLanes; ++e) z[e] = value[e] * scale[e] + shift[e];
    if (t.residual != nullptr) {
      A more[kLanes];
      widen(residual, more);
#pragma unroll
      for (int e = 0; e < kLanes; ++e) z[e] += more[e];
    }
    differentiate(activation, z);
    widen(grad, gz);
#pragma unroll
    for (int e = 0; e < kLanes; ++e) gz[e] *= z[e];
  }
};

// First stage of the sums: of each channel and segment the sums of gz and of gz * (x - mean).
template <typename S, int kLanes, Layout kLayout>
__global__ void __launch_bounds__(kBatchNormThreads, kBatchNormBackwardBlocks)
    batch_norm_act_backward_sums_kernel(BatchNormBackward<S> t, SumPlan p, Activation activation, double* parts) {
  using A = Accumulator<S>;
  using Thread = SumThread<kLanes, kLayout>;
  constexpr int kValues = Thread::kValues, kFlight = kBatchNormBackwardFlight;
  __shared__ A shared[kValues][kBatchNormThreads];
  const Thread own(p);
  A scale[kLanes], shift[kLanes], mean[kLanes];
  load_channels<kLayout>(t.scale, own.group * kValues, own.active, scale);
  load_channels<kLayout>(t.shift, own.group * kValues, own.active, shift);
  load_channels<kLayout>(t.mean, own.group * kValues, own.active, mean);
  A sum[kValues] = {}, product[kValues] = {};
  for (int64_t first = own.begin; first < own.end; first += int64_t(p.rows) * kFlight) {
    BackwardVectors<S, kLanes> loaded[kFlight];
#pragma unroll
    for (int k = 0; k < kFlight; ++k) loaded[k].load_from(t, own.offset(p, first, k), own.reads(p, first, k));
#pragma unroll
    for (int k = 0; k < kFlight; ++k) {
      A value[kLanes], gz[kLanes];
      widen(loaded[k].x, value);
      loaded[k].gradient_of_z(t, activation, value, scale, shift, gz);
#pragma unroll
      for (int e = 0; e < kLanes; ++e)  // what is not read has a gradient of 0
        sum[e % kValues] += gz[e], product[e % kValues] += gz[e] * (value[e] - mean[e]);
    }
  }
  own.sum_rows(p, shared, sum);
  own.sum_rows(p, shared, product);
  double sums[kValues], products[kValues];
#pragma unroll
  for (int v = 0; v < kValues; ++v) sums[v] = double(sum[v]), products[v] = double(product[v]);
  own.store_parts(p, sums, products, parts);
}

template <typename A> struct BatchNormGradientVectors {
  const A* scale;
  const A* invstd;
  A* grad_weight;  // null: not wanted
  A* grad_bias;    // null: not wanted
  A* constant;     // what the second pass subtracts
  A* slope;
};

// Second stage of the sums, a warp a channel.
template <typename A>
__global__ void __launch_bounds__(32 * kWarpsOfMerge)
    batch_norm_act_backward_merge_kernel(BatchNormGradientVectors<A> t, const double* parts, int64_t segments,
                                         int64_t pixels, int64_t C) {
  const int64_t c = int64_t(blockIdx.x) * kWarpsOfMerge + threadIdx.x / 32;
  double sum = 0.0, product = 0.0;
  over_parts(parts, c, c < C, segments, [&](double a, double b, int64_t, bool) { sum += a, product += b; });
  sum = sum_of_warp(sum), product = sum_of_warp(product);
  const bool writes = c < C && threadIdx.x % 32 == 0;
  const double invstd = load_one(t.invstd, c, writes), scale = load_one(t.scale, c, writes);
  const double share = 1.0 / double(pixels > 0 ? pixels : 1);
  if (t.grad_bias != nullptr) store_one(t.grad_bias, c, sum, writes);
  if (t.grad_weight != nullptr) store_one(t.grad_weight, c, product * invstd, writes);
  store_one(t.constant, c, scale * sum * share, writes);
  store_one(t.slope, c, scale * invstd * invstd * product * share, writes);
}

// grad_x and grad_residual.
template <typename S, int kLanes, Layout kLayout>
__global__ void __launch_bounds__(kBatchNormThreads, kBatchNormBackwardBlocks)
    batch_norm_act_backward_input_kernel(BatchNormBackward<S> t, RowPlan p, Activation activation) {
  using A = Accumulator<S>;
  constexpr int kFlight = kBatchNormBackwardFlight;
  const RowThread<kLanes, kLayout> own(p);
  BackwardVectors<S, kLanes> loaded[kFlight];
#pragma unroll
  for (int k = 0; k < kFlight; ++k) loaded[k].load_from(t, own.offset(p, k), own.has(p, k));
  A scale[kLanes], shift[kLanes], mean[kLanes] = {}, constant[kLanes] = {}, slope[kLanes] = {};
  load_channels<kLayout>(t.scale, own.channel, own.inside, scale);
  load_channels<kLayout>(t.shift, own.channel, own.inside, shift);
  if (t.constant != nullptr) {
    load_channels<kLayout>(t.mean, own.channel, own.inside, mean);
    load_channels<kLayout>(t.constant, own.channel, own.inside, constant);
    load_channels<kLayout>(t.slope, own.channel, own.inside, slope);
  }
#pragma unroll
  for (int k = 0; k < kFlight; ++k) {
    A value[kLanes], gz[kLanes];
    widen(loaded[k].x, value);
    loaded[k].gradient_of_z(t, activation, value, scale, shift, gz);
    if (t.grad_residual != nullptr) store(t.grad_residual + own.offset(p, k), narrow<S>(gz), own.has(p, k));
    if (t.grad_x == nullptr) continue;
#pragma unroll
    for (int e = 0; e < kLanes; ++e) gz[e] = gz[e] * scale[e];
    if (t.constant != nullptr) {
#pragma unroll
      for (int e = 0; e < kLanes; ++e) gz[e] -= (value[e] - mean[e]) * slope[e] + constant[e];
    }
    store(t.grad_x + own.offset(p, k), narrow<S>(gz), own.has(p, k));
  }
}

// Fills the vectors of v from the sums; t.constant and t.slope are not read. parts: batch_norm_sums_size(...) doubles,
// at a multiple of 16 bytes.
template <typename S>
cudaError_t launch_batch_norm_act_backward_sums(const BatchNormBackward<S>& t, const BatchNormShape& s,
                                                const BatchNormGradientVectors<Accumulator<S>>& v,
                                                Activation activation, double* parts, cudaStream_t stream) {
  if (s.C == 0) return cudaSuccess;
  const auto merge = [&](int64_t segments) {
    return launch(&batch_norm_act_backward_merge_kernel<Accumulator<S>>, blocks_for(s.C, kWarpsOfMerge),
                  dim3(32 * kWarpsOfMerge), 0, stream, v, parts, segments, s.N * s.HW, s.C);
  };
  if (s.N * s.HW == 0) return merge(0);
  const bool wide =
      batch_norm_is_wide<kBatchNormLanes<S>>(s, t.grad, t.x, t.residual, t.scale, t.shift, t.mean);
  return with_batch_norm_lanes<S>(s.layout, wide, [&](auto lanes, auto layout) {
    const SumPlan p = plan_sums<lanes()>(s);
    const cudaError_t error =
        launch(&batch_norm_act_backward_sums_kernel<S, lanes(), layout()>, dim3(unsigned(p.segments * p.chunks)),
               dim3(kBatchNormThreads), 0, stream, t, p, activation, parts);
    return error == cudaSuccess ? merge(p.segments) : error;
  });
}

// The tensors are dense in the shape's layout and have at least one element.
template <typename S>
cudaError_t launch_batch_norm_act_backward_input(const BatchNormBackward<S>& t, const BatchNormShape& s,
                                                 Activation activation, cudaStream_t stream) {
  const bool wide = batch_norm_is_wide<kBatchNormLanes<S>>(s, t.grad, t.x, t.residual, t.grad_x, t.grad_residual,
                                                           t.scale, t.shift, t.mean, t.constant, t.slope);
  return with_batch_norm_lanes<S>(s.layout, wide, [&](auto lanes, auto layout) {
    const RowPlan p = plan_rows<lanes()>(s, kBatchNormBackwardFlight);
    return launch(&batch_norm_act_backward_input_kernel<S, lanes(), layout()>, blocks_of(p), dim3(kBatchNormThreads), 0,
                  stream, t, p, activation);
  });
}

}  // namespace fastcnn
