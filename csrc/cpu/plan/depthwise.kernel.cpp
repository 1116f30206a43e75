// SPDX-License-Identifier: Apache-2.0
// Depthwise convolutions with activation, residual and the sums that squeeze-and-excitation starts from.
//
// A thread takes rows of y and walks a vector of channels down all of them: the taps of one vector stay in registers, and
// of x only the rows under the window have to stay in L1. Rows above and below the map are one row of zeros in scratch.
#include <cstring>
#include <optional>

#include "channel_sums.h"
#include "kernels.h"
#include "tile.h"

namespace fastcnn {
namespace plan {
inline namespace FASTCNN_ISA {
namespace {

// One pixel, by the taps that lie within the row.
template <typename Lanes>
FASTCNN_INLINE V window(const DepthwiseArgs& a, const Map& x, const float* const* in, const float* weight, V sum, int64_t ox, Lanes lanes) {
  const int64_t left = ox * a.stride_w - a.pad_left;
  for (int64_t ky = 0; ky < a.kernel_h; ++ky)
    for (int64_t kx = 0; kx < a.kernel_w; ++kx) {
      const int64_t ix = left + kx * a.dilation_w;
      if (ix >= 0 && ix < x.W) sum = fma(lanes.load(in[ky] + ix * x.pixel), V::load(weight + (ky * a.kernel_w + kx) * kLanes), sum);
    }
  return sum;
}

// The pixels whose windows lie within the row, with K x K taps held in registers.
template <int K, typename Lanes, typename Store>
FASTCNN_INLINE void inner(const float* const* in, const float* weight, V bias, int64_t begin, int64_t end, int64_t step, int64_t pixel,
                          int64_t start,
                          Lanes lanes, Store&& store) {
  decltype(V::v) taps[K * K];
#pragma GCC unroll 49
  for (int t = 0; t < K * K; ++t) taps[t] = V::load(weight + t * kLanes).v;
  const float* row[K];
#pragma GCC unroll 7
  for (int ky = 0; ky < K; ++ky) row[ky] = in[ky] + start;
  for (int64_t ox = begin; ox < end; ++ox) {
    V sums[K];
#pragma GCC unroll 7
    for (int ky = 0; ky < K; ++ky) {
      V sum = ky == 0 ? bias : V(0);
#pragma GCC unroll 7
      for (int kx = 0; kx < K; ++kx) sum = fma(lanes.load(row[ky] + kx * pixel), V(taps[ky * K + kx]), sum);
      sums[ky] = sum;
      row[ky] += step;
    }
#pragma GCC unroll 7
    for (int ky = 1; ky < K; ++ky) sums[0] = sums[0] + sums[ky];
    store(ox, sums[0]);
  }
}

template <typename Act, typename Lanes>
void strip(const Call& call, const DepthwiseArgs& a, Act act, Lanes lanes, int64_t image, Range rows, int64_t channel, const float* zeros,
           const ChannelSums* sums) {
  const Map &x = call.map(a.x), &y = call.map(a.y);
  const Map* residual = call.optional_map(a.residual);
  const int64_t taps = a.kernel_h * a.kernel_w;
  const float* weight = call.weight(a.weight) + channel * taps;
  const V bias = a.bias == kNone ? V(0) : V::load(call.weight(a.bias) + channel);
  const int64_t reach = (a.kernel_w - 1) * a.dilation_w;
  const int64_t begin = std::min(y.W, ceil_div(a.pad_left, a.stride_w));
  const int64_t end = std::max(begin, std::min(y.W, x.W + a.pad_left - reach > 0 ? (x.W + a.pad_left - reach - 1) / a.stride_w + 1 : 0));
  const bool square = a.kernel_h == a.kernel_w && a.dilation_h == 1 && a.dilation_w == 1;
  const float* in[kMostKernel];
  for (int64_t oy = rows.begin; oy < rows.end; ++oy) {
    for (int64_t ky = 0; ky < a.kernel_h; ++ky) {
      const int64_t iy = oy * a.stride_h - a.pad_top + ky * a.dilation_h;
      in[ky] = iy >= 0 && iy < x.H ? x.at(image, iy) + channel : zeros;
    }
    V total(0);
    float* out = y.at(image, oy) + channel;
    const float* add = residual == nullptr ? nullptr : residual->at(image, oy) + channel;
    const auto store = [&](int64_t ox, V value) {
      if (add != nullptr) value = value + lanes.load(add + ox * residual->pixel);
      value = act(value);
      if (sums != nullptr) total = total + lanes.keep(value);
      lanes.store(value, out + ox * y.pixel);
    };
    for (int64_t ox = 0; ox < begin; ++ox) store(ox, window(a, x, in, weight, bias, ox, lanes));
    const int64_t start = (begin * a.stride_w - a.pad_left) * x.pixel, step = a.stride_w * x.pixel;
    if (square && a.kernel_h == 3) inner<3>(in, weight, bias, begin, end, step, x.pixel, start, lanes, store);
    else if (square && a.kernel_h == 5) inner<5>(in, weight, bias, begin, end, step, x.pixel, start, lanes, store);
    else if (square && a.kernel_h == 7) inner<7>(in, weight, bias, begin, end, step, x.pixel, start, lanes, store);
    else
      for (int64_t ox = begin; ox < end; ++ox) store(ox, window(a, x, in, weight, bias, ox, lanes));
    for (int64_t ox = end; ox < y.W; ++ox) store(ox, window(a, x, in, weight, bias, ox, lanes));
    if (sums != nullptr) {
      float* sum = sums->of(image, oy) + channel;
      lanes.store(lanes.load(sum) + total, sum);
    }
  }
}

void depthwise(const Call& call) {
  const auto& a = call.args<DepthwiseArgs>();
  const Map &x = call.map(a.x), &y = call.map(a.y);
  float* zeros = call.scratch;
  std::memset(zeros, 0, size_t(x.W * x.pixel) * sizeof(float));
  std::optional<ChannelSums> sums;
  if (a.sums != kNone) sums.emplace(call, call.map(a.sums), y);
  // one image's rows are shared; several images' need no sharing, for a team has as many images as threads at most
  const Range rows = sums ? sums->rows() : call.team.share(y.H);
  for (int64_t image = 0; image < y.images; ++image)
    dispatch_activation(a.activation(), [&](auto act) {
      over_lanes<V>(y.C, [&](int64_t channel, auto lanes) {
        strip(call, a, act, lanes, image, rows, channel, zeros, sums ? &*sums : nullptr);
      });
    });
  if (sums) sums->finish();
}

int64_t scratch(const Call& call) {
  const Map& x = call.map(call.args<DepthwiseArgs>().x);
  return x.W * x.pixel;
}

int64_t shared(const Call& call) {
  const auto& a = call.args<DepthwiseArgs>();
  const Map& y = call.map(a.y);
  return a.sums == kNone ? 0 : ChannelSums::shared(y);
}

}  // namespace

extern const Kernel kDepthwise;
const Kernel kDepthwise{depthwise, scratch, shared};

}  // namespace FASTCNN_ISA
}  // namespace plan
}  // namespace fastcnn
