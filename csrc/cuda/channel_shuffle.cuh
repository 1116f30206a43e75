// SPDX-License-Identifier: Apache-2.0
// Channel shuffle, its inverse, and concat + shuffle: every byte is read once and written once. Free of torch.
//
// S stands for its width: bits are copied. x may be a range of the channels of a wider tensor (strides below), y is
// dense. A thread moves vectors of kLanes elements, 16 bytes where strides, channels and addresses allow it, else 8, 4
// or one element, and then as many more of them at once (kSteps), so that as many bytes are under way.
//   pairs    NHWC, two groups, or their inverse: two vectors of kLanes, one of each half, are interleaved (dealt out)
//            in registers. Of 16-byte vectors the interleaved side is two: neighbouring threads exchange one, so that
//            each request of a warp is contiguous, 16 full sectors of a store or load.
//   staged   NHWC, any number of groups: a block copies a tile of whole pixels (8 KiB, at least as many as end at a
//            multiple of 16 bytes) to shared memory, and gathers each 16-byte vector of y from there. A pad of 16
//            bytes behind each 128 keeps regular strides off one bank.
//   gather   NHWC where no vectors fit: one element a thread, y in order.
//   planes   NCHW: whole planes are copied, in vectors along HW.
#pragma once

#include <initializer_list>
#include <type_traits>

#include "../common/shape.h"
#include "vec.cuh"

namespace fastcnn {

constexpr int kShuffleThreads = 256;

// Channel i * groups + g of y is channel g * (C / groups) + i of x1; or, with x2, channel 2 i of y is channel i of x1
// and 2 i + 1 that of x2.
template <typename S> struct ShuffleTensors {
  const S* x1;
  int64_t stride1;  // elements from pixel to pixel (NHWC) or image to image (NCHW)
  const S* x2;      // or null
  int64_t stride2;
  S* y;
};

struct ShuffleShape {
  Layout layout;
  int64_t N, C, HW;  // of y
  int64_t groups;    // 2 with x2
};

// Accesses of a thread, before any of its stores: 16 bytes of loads of a kind, at most four.
template <typename S, int kLanes>
constexpr int kShuffleSteps = kVectorLanes<S> / kLanes < 4 ? kVectorLanes<S> / kLanes : 4;

// Of two neighbouring threads each has the first and second vector of four in a row; behind it the even one has the
// first and third, the odd one the second and fourth. Its own inverse.
template <typename V> __device__ __forceinline__ void exchange_with_neighbour(V& first, V& second) {
  constexpr int kWords = V::kBytes / 4;
  const bool odd = (threadIdx.x & 1u) != 0;
  unsigned a[kWords], b[kWords];
  memcpy(a, &first, sizeof a), memcpy(b, &second, sizeof b);
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    const unsigned theirs = __shfl_xor_sync(0xffffffffu, odd ? a[i] : b[i], 1);
    a[i] = odd ? theirs : a[i], b[i] = odd ? b[i] : theirs;
  }
  memcpy(&first, a, sizeof a), memcpy(&second, b, sizeof b);
}

// Elements 0, 1, ... of first and second, in turns, to first and behind it second; or back (kDeal).
template <bool kDeal, typename S, int kLanes>
__device__ __forceinline__ void interleave(Vec<S, kLanes>& first, Vec<S, kLanes>& second) {
  if constexpr (kLanes > 1) {
    constexpr int kWords = Vec<S, kLanes>::kBytes / 4, kPer = sizeof(S) >= 4 ? int(sizeof(S)) / 4 : 1;
    unsigned from[2 * kWords], to[2 * kWords];
    memcpy(from, &first, sizeof first), memcpy(from + kWords, &second, sizeof second);
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const int pair = i / kPer * 2 * kPer + i % kPer, next = pair + kPer;
      const unsigned a = from[kDeal ? pair : i], b = from[kDeal ? next : kWords + i];
      to[kDeal ? i : pair] = sizeof(S) == 2 ? (a & 0xffffu) | b << 16 : a;
      to[kDeal ? kWords + i : next] = sizeof(S) == 2 ? a >> 16 | (b & 0xffff0000u) : b;
    }
    memcpy(&first, to, sizeof first), memcpy(&second, to + kWords, sizeof second);
  }
}

// Unit i of `units` a pixel: kLanes channels of either half. Interleaves x1 and x2 into y, or deals x1 out to the
// halves of y. On the interleaved side two vectors of less than 16 bytes are one access.
template <typename S, int kLanes, bool kDeal>
__global__ void __launch_bounds__(kShuffleThreads)
    channel_shuffle_pairs_kernel(ShuffleTensors<S> t, int64_t pixels, int64_t units) {
  using V = Vec<S, kLanes>;
  constexpr int kSteps = kShuffleSteps<S, kLanes>;
  constexpr bool kWide = kLanes == kVectorLanes<S>, kJoined = !kWide && kLanes > 1;
  const int64_t count = pixels * units;
  const int64_t begin = int64_t(blockIdx.x) * (kShuffleThreads * kSteps) + threadIdx.x;
  V first[kSteps], second[kSteps];
  // where the two vectors of unit i lie on the interleaved side, in vectors
  const auto vector_of = [](int64_t i, int which) { return kWide ? i / 2 * 4 + i % 2 + which * 2 : i * 2 + which; };
  const auto dealt = [&](int64_t i, int which) {
    const int64_t at = vector_of(i, which), pixel = at / (2 * units);
    return t.x1 + pixel * t.stride1 + (at - pixel * 2 * units) * kLanes;
  };
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int64_t i = begin + s * kShuffleThreads;
    if constexpr (!kDeal) {
      const int64_t pixel = i / units, c = (i - pixel * units) * kLanes;
      first[s] = load<kLanes>(t.x1 + pixel * t.stride1 + c, i < count);
      second[s] = load<kLanes>(t.x2 + pixel * t.stride2 + c, i < count);
    } else if constexpr (kJoined) {
      const auto both = load<2 * kLanes>(dealt(i, 0), i < count);
      memcpy(&first[s], &both, sizeof(V));
      memcpy(&second[s], reinterpret_cast<const char*>(&both) + sizeof(V), sizeof(V));
    } else {
      first[s] = load<kLanes>(dealt(i, 0), vector_of(i, 0) < 2 * count);
      second[s] = load<kLanes>(dealt(i, 1), vector_of(i, 1) < 2 * count);
    }
  }
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int64_t i = begin + s * kShuffleThreads;
    if constexpr (kDeal) {
      const int64_t pixel = i / units;
      if constexpr (kWide) exchange_with_neighbour(first[s], second[s]);
      interleave<true>(first[s], second[s]);
      // written out: from an address that differs by the half alone, nvcc 13.0 splits the second vector
      store(t.y + (pixel * units + i) * kLanes, first[s], i < count);
      store(t.y + ((pixel + 1) * units + i) * kLanes, second[s], i < count);
      continue;
    }
    interleave<false>(first[s], second[s]);
    if constexpr (kWide) exchange_with_neighbour(first[s], second[s]);
    if constexpr (kJoined) {
      Vec<S, 2 * kLanes> both;
      memcpy(&both, &first[s], sizeof(V));
      memcpy(reinterpret_cast<char*>(&both) + sizeof(V), &second[s], sizeof(V));
      store(t.y + vector_of(i, 0) * kLanes, both, i < count);
    } else {
      store(t.y + vector_of(i, 0) * kLanes, first[s], vector_of(i, 0) < 2 * count);
      store(t.y + vector_of(i, 1) * kLanes, second[s], vector_of(i, 1) < 2 * count);
    }
  }
}

// `tile` pixels to a block; tile * C and pixels * C are whole vectors, and so is C unless x is dense.
template <typename S>
__global__ void __launch_bounds__(kShuffleThreads)
    channel_shuffle_staged_kernel(ShuffleTensors<S> t, int64_t pixels, int C, int groups, int tile) {
  constexpr int kLanes = kVectorLanes<S>, kRow = 128 / int(sizeof(S));
  S* staged = dynamic_shared<S>();
  const auto slot = [](int j) { return j + j / kRow * kLanes; };
  const int64_t begin = int64_t(blockIdx.x) * tile;
  const int count = int(pixels - begin < tile ? pixels - begin : int64_t(tile)) * C;
  const S* x = t.x1 + begin * t.stride1;
  for (int base = 0; base < count; base += kShuffleThreads * kLanes) {
    const int j = base + int(threadIdx.x) * kLanes;
    const auto v = load<kLanes>(x + j / C * (t.stride1 - C) + j, j < count);
    if (j < count) *reinterpret_cast<decltype(v.word)*>(staged + slot(j)) = v.word;
  }
  __syncthreads();
  const int depth = C / groups;
  for (int base = 0; base < count; base += kShuffleThreads * kLanes) {
    const int j = base + int(threadIdx.x) * kLanes, c = j % C;
    int i = c / groups, g = c - i * groups, from = j - c + g * depth + i;
    S gathered[kLanes] = {};
#pragma unroll
    for (int e = 0; e < kLanes; ++e) {
      if (j < count) gathered[e] = staged[slot(from)];
      from += depth;
      if (++g == groups) {
        g = 0, from += 1 - C;
        if (++i == depth) i = 0, from += C - depth;
      }
    }
    Vec<S, kLanes> v;
    memcpy(&v, gathered, sizeof v);
    store(t.y + begin * C + j, v, j < count);
  }
}

template <typename S>
__global__ void __launch_bounds__(kShuffleThreads)
    channel_shuffle_gather_kernel(ShuffleTensors<S> t, int64_t pixels, int64_t C, int64_t groups) {
  constexpr int kSteps = kShuffleSteps<S, 1>;
  const int64_t begin = int64_t(blockIdx.x) * (kShuffleThreads * kSteps) + threadIdx.x, depth = C / groups;
  Vec<S, 1> v[kSteps];
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int64_t j = begin + s * kShuffleThreads, pixel = j / C, c = j - pixel * C, i = c / groups;
    v[s] = load<1>(t.x1 + pixel * t.stride1 + (c - i * groups) * depth + i, j < pixels * C);
  }
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int64_t j = begin + s * kShuffleThreads;
    store(t.y + j, v[s], j < pixels * C);
  }
}

// Unit i of `units` a plane: kLanes of its elements.
template <typename S, int kLanes>
__global__ void __launch_bounds__(kShuffleThreads)
    channel_shuffle_planes_kernel(ShuffleTensors<S> t, int64_t N, int64_t C, int64_t groups, int64_t units) {
  constexpr int kSteps = kShuffleSteps<S, kLanes>;
  const int64_t begin = int64_t(blockIdx.x) * (kShuffleThreads * kSteps) + threadIdx.x;
  const int64_t count = N * C * units, HW = units * kLanes, depth = C / groups;
  Vec<S, kLanes> v[kSteps];
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int64_t unit = begin + s * kShuffleThreads, plane = unit / units;
    const int64_t n = plane / C, c = plane - n * C, i = c / groups, g = c - i * groups;
    const bool of_second = t.x2 != nullptr && g != 0;
    const int64_t channel = t.x2 != nullptr ? i : g * depth + i;
    const S* image = of_second ? t.x2 + n * t.stride2 : t.x1 + n * t.stride1;
    v[s] = load<kLanes>(image + channel * HW + (unit - plane * units) * kLanes, unit < count);
  }
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int64_t unit = begin + s * kShuffleThreads;
    store(t.y + unit * kLanes, v[s], unit < count);
  }
}

// The largest power of two, at most 16, that divides every address and every stride, given in bytes.
inline int64_t common_bytes(std::initializer_list<int64_t> counts) {
  int64_t bits = kVectorBytes;
  for (const int64_t count : counts) bits |= count;
  return bits & -bits;
}
inline int64_t address_of(const void* pointer) { return int64_t(reinterpret_cast<uintptr_t>(pointer)); }

// f(the number of lanes in `bytes`, at least one, as a constant)
template <typename S, int kLanes = kVectorLanes<S>, typename F> cudaError_t with_lanes(int64_t bytes, F&& f) {
  if constexpr (kLanes > 1)
    if (bytes < kLanes * int64_t(sizeof(S))) return with_lanes<S, kLanes / 2>(bytes, f);
  return f(std::integral_constant<int, kLanes>());
}

template <typename S>
cudaError_t launch_shuffle_planes(const ShuffleTensors<S>& t, const ShuffleShape& shape, cudaStream_t stream) {
  constexpr int64_t kSize = sizeof(S);
  const int64_t bytes = common_bytes({address_of(t.x1), address_of(t.x2), address_of(t.y), shape.HW * kSize,
                                      t.stride1 * kSize, t.stride2 * kSize});
  return with_lanes<S>(bytes, [&](auto lanes) {
    constexpr int kLanes = decltype(lanes)::value;
    const int64_t units = shape.HW / kLanes;
    return launch(&channel_shuffle_planes_kernel<S, kLanes>,
                  blocks_for(shape.N * shape.C * units, kShuffleThreads * kShuffleSteps<S, kLanes>),
                  dim3(kShuffleThreads), 0, stream, t, shape.N, shape.C, shape.groups, units);
  });
}

template <typename S, bool kDeal>
cudaError_t launch_shuffle_pairs(const ShuffleTensors<S>& t, int64_t pixels, int64_t half, cudaStream_t stream) {
  constexpr int64_t kSize = sizeof(S);
  // of the interleaved side, pixels begin at multiples of two vectors
  const int64_t bytes =
      !is_aligned<kVectorBytes>(kDeal ? static_cast<const void*>(t.x1) : t.y) ? kSize
      : kDeal ? common_bytes({address_of(t.y), t.stride1 * kSize / 2, half * kSize})
              : common_bytes({address_of(t.x1), address_of(t.x2), t.stride1 * kSize, t.stride2 * kSize, half * kSize});
  return with_lanes<S>(bytes, [&](auto lanes) {
    constexpr int kLanes = decltype(lanes)::value;
    const int64_t units = half / kLanes;
    return launch(&channel_shuffle_pairs_kernel<S, kLanes, kDeal>,
                  blocks_for(pixels * units, kShuffleThreads * kShuffleSteps<S, kLanes>), dim3(kShuffleThreads), 0,
                  stream, t, pixels, units);
  });
}

template <typename S>
cudaError_t launch_shuffle_groups(const ShuffleTensors<S>& t, int64_t pixels, int64_t C, int64_t groups,
                                  cudaStream_t stream) {
  constexpr int64_t kSize = sizeof(S), kLanes = kVectorLanes<S>, kTile = 8 << 10, kMostTile = 40 << 10;
  const int64_t step = kVectorBytes / common_bytes({C * kSize});  // pixels that end at a multiple of 16 bytes
  const bool whole = t.stride1 == C || (C % kLanes == 0 && t.stride1 % kLanes == 0);
  if (!whole || pixels * C % kLanes != 0 || C > kMostTile / kSize / step || !is_aligned<kVectorBytes>(t.x1) ||
      !is_aligned<kVectorBytes>(t.y))
    return launch(&channel_shuffle_gather_kernel<S>, blocks_for(pixels * C, kShuffleThreads * kShuffleSteps<S, 1>),
                  dim3(kShuffleThreads), 0, stream, t, pixels, C, groups);
  const int64_t steps = kTile / (step * C * kSize), tile = step * (steps > 1 ? steps : 1), bytes = tile * C * kSize;
  return launch(&channel_shuffle_staged_kernel<S>, blocks_for(pixels, tile), dim3(kShuffleThreads),
                size_t(bytes + bytes / 128 * kVectorBytes), stream, t, pixels, int(C), int(groups), int(tile));
}

// y has at least one element.
template <typename S>
cudaError_t launch_channel_shuffle(ShuffleTensors<S> t, const ShuffleShape& shape, cudaStream_t stream) {
  if (shape.layout == Layout::kNCHW) return launch_shuffle_planes(t, shape, stream);
  const int64_t pixels = shape.N * shape.HW, half = shape.C / 2;
  if (shape.groups == 2 && t.x2 == nullptr) t.x2 = t.x1 + half, t.stride2 = t.stride1;
  if (shape.groups == 2) return launch_shuffle_pairs<S, false>(t, pixels, half, stream);
  if (shape.C == 2 * shape.groups) return launch_shuffle_pairs<S, true>(t, pixels, half, stream);
  return launch_shuffle_groups(t, pixels, shape.C, shape.groups, stream);
}

}  // namespace fastcnn
