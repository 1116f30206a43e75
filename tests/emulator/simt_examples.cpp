// SPDX-License-Identifier: Apache-2.0
// Small kernels that use each part of the emulator, right and wrong: the test of the tests.
#include "bindings.h"

#include "../../csrc/cuda/vec.cuh"

namespace fastcnn {
namespace {

constexpr int kThreads = 64;

enum class Bug : int {
  kNone,
  kNoBarrier,
  kBarrierInBranch,
  kTwoBarriers,
  kLaneGone,
  kMaskTooSmall,
  kNotInMask,
  kShuffleInBranch,
  kDynamicOverrun,
  kStaticOverrun,
  kMisaligned,
  kLanesDisagree,
  kOutside,
  kUnwrittenShared
};

// The sum of each block's 64 elements: shuffles within a warp, static shared memory across the two.
__global__ void __launch_bounds__(kThreads) block_sum_kernel(const float* x, float* sums, Bug bug) {
  __shared__ float of_warp[kThreads / warpSize];
  const int lane = int(threadIdx.x) % warpSize, warp = int(threadIdx.x) / warpSize;
  float value[1];
  widen(load<1>(x + blockIdx.x * kThreads + threadIdx.x, true), value);
  if (bug == Bug::kLaneGone && lane == 7) return;
  const unsigned mask = bug == Bug::kMaskTooSmall             ? 0x0000ffffu
                        : bug == Bug::kNotInMask && lane == 3 ? 0xfffffff0u
                                                              : 0xffffffffu;
  if (bug == Bug::kShuffleInBranch && lane < 16) value[0] += __shfl_xor_sync(0xffffffffu, value[0], 1);
  if (bug != Bug::kMaskTooSmall || lane < 16)
#pragma unroll
    for (int step = warpSize / 2; step > 0; step /= 2) value[0] += __shfl_xor_sync(mask, value[0], step);
  if (lane == 0 && bug != Bug::kUnwrittenShared) of_warp[warp + (bug == Bug::kStaticOverrun ? 1 : 0)] = value[0];
  if (bug == Bug::kBarrierInBranch) {
    if (warp == 0) __syncthreads();
  } else if (bug == Bug::kTwoBarriers) {
    if (warp == 0) __syncthreads();
    else __syncthreads();
  } else if (bug != Bug::kNoBarrier) {
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    const float total[1] = {of_warp[0] + of_warp[1]};
    store(sums + blockIdx.x, narrow<float>(total), true);
  }
}

// Each block's 64 elements in reverse, by dynamic shared memory.
__global__ void __launch_bounds__(kThreads) reverse_kernel(const float* x, float* y, Bug bug) {
  float* staged = dynamic_shared<float>();
  const int64_t first = int64_t(blockIdx.x) * kThreads;
  float value[1];
  if (bug == Bug::kLanesDisagree && threadIdx.x % 2 == 0) widen(load<1>(x + first + threadIdx.x, true), value);
  else widen(load<1>(x + first + threadIdx.x + (bug == Bug::kOutside ? 1 << 20 : 0), true), value);
  staged[threadIdx.x + (bug == Bug::kDynamicOverrun ? 1 : 0)] = value[0];
  if (bug != Bug::kNoBarrier) __syncthreads();
  value[0] = staged[kThreads - 1 - threadIdx.x];
  store(y + first + threadIdx.x, narrow<float>(value), true);
}

__global__ void copy_pairs_kernel(const float* x, float* y, int offset) {
  store(y + 2 * threadIdx.x, load<2>(x + 2 * threadIdx.x + offset, true), true);
}

__global__ void lanes_kernel(float* y) {
  const int lane = int(threadIdx.x);
  const float down = __shfl_down_sync(0xffffffffu, float(lane), 3, 8),
              up = __shfl_up_sync(0xffffffffu, float(lane), 3, 8);
  const float from = __shfl_sync(0xffffffffu, float(lane), 5, 16);
  const unsigned votes = __ballot_sync(0xffffffffu, lane % 3 == 0);
  y[lane] = down, y[32 + lane] = up, y[64 + lane] = from, y[96 + lane] = float(votes >> lane & 1u);
}

}  // namespace
}  // namespace fastcnn

PYBIND11_MODULE(emulated_simt_examples, m) {
  using namespace fastcnn;
  bind_emulator(m);
  m.def("block_sum", [](uintptr_t x, uintptr_t sums, int blocks, int bug) {
    check(launch(&block_sum_kernel, dim3(blocks), dim3(kThreads), 0, nullptr, at<const float>(x), at<float>(sums),
                 Bug(bug)));
  });
  m.def("reverse", [](uintptr_t x, uintptr_t y, int blocks, int bug) {
    check(launch(&reverse_kernel, dim3(blocks), dim3(kThreads), kThreads * sizeof(float), nullptr, at<const float>(x),
                 at<float>(y), Bug(bug)));
  });
  m.def("copy_pairs", [](uintptr_t x, uintptr_t y, int offset) {
    check(launch(&copy_pairs_kernel, dim3(1), dim3(32), 0, nullptr, at<const float>(x), at<float>(y), offset));
  });
  m.def("lanes", [](uintptr_t y) { check(launch(&lanes_kernel, dim3(1), dim3(32), 0, nullptr, at<float>(y))); });
  m.def("launch_of", [](unsigned grid_x, unsigned grid_y, unsigned threads, size_t shared_bytes) {
    check(launch(&lanes_kernel, dim3(grid_x, grid_y), dim3(threads), shared_bytes, nullptr, nullptr));
  });
  pybind11::enum_<Bug> bugs(m, "Bug");
  const char* names[] = {"none",           "no_barrier",     "barrier_in_branch", "two_barriers",    "lane_gone",
                         "mask_too_small", "not_in_mask",    "shuffle_in_branch", "dynamic_overrun", "static_overrun",
                         "misaligned",     "lanes_disagree", "outside",           "unwritten_shared"};
  for (int i = 0; i < int(sizeof names / sizeof names[0]); ++i) bugs.value(names[i], Bug(i));
}
