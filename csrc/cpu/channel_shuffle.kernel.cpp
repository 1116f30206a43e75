// SPDX-License-Identifier: Apache-2.0
// Channel shuffle: 1 read and 1 write an element, nothing else; memory bandwidth is the roof.
//
// NCHW copies whole planes. NHWC permutes the C elements of a pixel. A shuffle by few groups interleaves that many streams, its inverse
// deals one stream out to them; with the number of streams a constant (kStreams below) the compiler turns either loop into vector shuffles.
// Any other number runs as a strided copy, one element a step.
//
// Concat + shuffle of two tensors is the interleave of two streams that lie in different places; neither the concat nor
// a copy of a split half is ever in memory.
#include "channel_shuffle.h"

#include <type_traits>

#include "../common/dispatch.h"
#include "lanes.h"
#include "parallel.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {
namespace {

constexpr int64_t kGrainBytes = 131072;  // copied bytes that are worth a thread

// In line, as vectors of 4-byte words: a call of memcpy per plane of a few hundred bytes costs more than its copy.
template <typename T> FASTCNN_INLINE void copy_plane(const T* from, T* to, int64_t count) {
  const int64_t words = count * int64_t(sizeof(T)) / int64_t(sizeof(float));
  const float* source = reinterpret_cast<const float*>(from);
  float* target = reinterpret_cast<float*>(to);
  over_lanes<VecF>(words, [&](int64_t i, auto lanes) { lanes.store(lanes.load(source + i), target + i); });
  if (sizeof(T) < sizeof(float) && count % 2 != 0) to[count - 1] = from[count - 1];
}

template <typename T> void shuffle_planes(const ChannelShuffleArgs& args) {
  const int64_t C = args.C, HW = args.HW, groups = args.groups, depth = C / groups;
  parallel_for(args.N * C, ceil_div(kGrainBytes, HW * int64_t(sizeof(T))), [&](int64_t begin, int64_t end) {
    int64_t n = begin / C, i = (begin - n * C) / groups, g = (begin - n * C) % groups;
    for (int64_t plane = begin; plane < end; ++plane) {
      const T* source = static_cast<const T*>(args.x) + (n * C + g * depth + i) * HW;
      copy_plane(source, static_cast<T*>(args.y) + plane * HW, HW);
      if (++g == groups) g = 0, ++i;
      if (i == depth) i = 0, ++n;
    }
  });
}

// y[i * kStreams + s] = x[s * length + i]
template <typename T, int kStreams> struct Interleave {
  static FASTCNN_INLINE void run(const T* __restrict x, T* __restrict y, int64_t length) {
    for (int64_t i = 0; i < length; ++i)
      for (int s = 0; s < kStreams; ++s) y[i * kStreams + s] = x[s * length + i];
  }
};

// y[s * length + i] = x[i * kStreams + s]
template <typename T, int kStreams> struct Deal {
  static FASTCNN_INLINE void run(const T* __restrict x, T* __restrict y, int64_t length) {
    for (int64_t i = 0; i < length; ++i)
      for (int s = 0; s < kStreams; ++s) y[s * length + i] = x[i * kStreams + s];
  }
};

template <typename T, typename F> void each_pixel(const ChannelShuffleArgs& args, F permute) {
  parallel_for(args.N * args.HW, ceil_div(kGrainBytes, args.C * int64_t(sizeof(T))), [&](int64_t begin, int64_t end) {
    for (int64_t pixel = begin; pixel < end; ++pixel)
      permute(static_cast<const T*>(args.x) + pixel * args.C, static_cast<T*>(args.y) + pixel * args.C);
  });
}

template <typename T> void shuffle_pixels(const ChannelShuffleArgs& args) {
  const int64_t groups = args.groups, depth = args.C / groups;
  const auto fixed = [&](auto streams) {
    constexpr int kStreams = decltype(streams)::value;
    if (groups == kStreams) each_pixel<T>(args, [=](const T* x, T* y) { Interleave<T, kStreams>::run(x, y, depth); });
    else each_pixel<T>(args, [=](const T* x, T* y) { Deal<T, kStreams>::run(x, y, groups); });
  };
  const int64_t streams = groups < depth ? groups : depth;
  switch (streams) {
    case 1: return each_pixel<T>(args, [&](const T* x, T* y) { std::memcpy(y, x, size_t(args.C) * sizeof(T)); });
    case 2: return fixed(std::integral_constant<int, 2>{});
    case 3: return fixed(std::integral_constant<int, 3>{});
    case 4: return fixed(std::integral_constant<int, 4>{});
    case 8: return fixed(std::integral_constant<int, 8>{});
    default: break;
  }
  each_pixel<T>(args, [=](const T* x, T* y) {
    for (int64_t i = 0; i < depth; ++i)
      for (int64_t g = 0; g < groups; ++g) y[i * groups + g] = x[g * depth + i];
  });
}

template <typename T> void shuffle(const ChannelShuffleArgs& args) {
  if (args.layout == Layout::kNCHW) shuffle_planes<T>(args);
  else shuffle_pixels<T>(args);
}

template <typename T> FASTCNN_INLINE void interleave_pair(const T* __restrict a, const T* __restrict b, T* __restrict y, int64_t length) {
  for (int64_t i = 0; i < length; ++i) y[2 * i] = a[i], y[2 * i + 1] = b[i];
}

template <typename T> void concat(const ChannelShuffleConcatArgs& args) {
  const T *x1 = static_cast<const T*>(args.x1), *x2 = static_cast<const T*>(args.x2);
  T* y = static_cast<T*>(args.y);
  const int64_t C = args.C, HW = args.HW;
  if (args.layout == Layout::kNHWC)
    return parallel_for(args.N * HW, ceil_div(kGrainBytes, 2 * C * int64_t(sizeof(T))), [&](int64_t begin, int64_t end) {
      for (int64_t pixel = begin; pixel < end; ++pixel)
        interleave_pair(x1 + pixel * args.stride1, x2 + pixel * args.stride2, y + pixel * 2 * C, C);
    });
  parallel_for(args.N * C, ceil_div(kGrainBytes, 2 * HW * int64_t(sizeof(T))), [&](int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair) {
      const int64_t n = pair / C, c = pair % C;
      copy_plane(x1 + n * args.stride1 + c * HW, y + 2 * pair * HW, HW);
      copy_plane(x2 + n * args.stride2 + c * HW, y + (2 * pair + 1) * HW, HW);
    }
  });
}

// f(zero of an integer as wide as the dtype)
template <typename F> void dispatch_width(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::kFloat16:
    case Dtype::kBFloat16: return f(uint16_t(0));
    case Dtype::kFloat32: return f(uint32_t(0));
    case Dtype::kFloat64: return f(uint64_t(0));
  }
}

}  // namespace

void channel_shuffle_kernel(const ChannelShuffleArgs& args) {
  dispatch_width(args.dtype, [&](auto zero) { shuffle<decltype(zero)>(args); });
}

void channel_shuffle_concat_kernel(const ChannelShuffleConcatArgs& args) {
  dispatch_width(args.dtype, [&](auto zero) { concat<decltype(zero)>(args); });
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
