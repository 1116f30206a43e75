// SPDX-License-Identifier: Apache-2.0
// The inverted residual without its large maps: 1x1 expansion, depthwise convolution and 1x1 projection, a band of output
// rows at a time.
//
// A thread keeps the expanded rows under the window in a ring in scratch, which stays in L2. The ring lies panel by panel,
// two or three vectors of channels, each a run of rows with their padding: the depthwise part needs no care at edges, and
// no two of the rows it reads meet in one cache set. A round fills a panel's next rows, takes the band's depthwise rows from
// it, panel after panel, and then projects the band at full depth. Without an expansion, rows of x are copied into the ring.
// Threads share the output rows; the rows under two threads' windows are expanded by both.
#include <cstring>
#include <optional>

#include "channel_sums.h"
#include "kernels.h"
#include "tile.h"

namespace fastcnn {
namespace plan {
inline namespace FASTCNN_ISA {
namespace {

// A round: pixels enough for the tiles, and as long as the ring is small, for rows of the ring and panels of weights to be used again.
constexpr int64_t kFewPixels = 56, kManyPixels = 224;
constexpr int64_t kRing = 256 * 1024 / int64_t(sizeof(float));
constexpr int kAtOnce = 4;  // pixels of a depthwise row: chains enough for the latency of an FMA
constexpr int64_t kMostWidth = 3;  // vectors of a panel

struct Shape {
  int64_t vectors;  // of the channels between the two 1x1 convolutions
  int64_t pixels;   // of a row of the ring, with its padding
  int64_t depth;    // floats of a pixel that waits for its projection
  int64_t band;     // output rows of a round
  int64_t rows;     // of the ring

  Shape(const InvertedResidualArgs& a, const Map& x, const Map& y)
      : vectors(ceil_div(a.channels, kLanes)),
        pixels(std::max(x.W + a.pad_left, (y.W - 1) * a.stride + a.kernel)),
        depth((vectors | 1) * kLanes) {  // an odd number of vectors: the rows of a tile in different cache sets
    const int64_t small = (kRing / (vectors * pixels * kLanes) - a.kernel) / a.stride + 1;
    band = std::min(y.H, std::max(ceil_div(kFewPixels, y.W), std::min(ceil_div(kManyPixels, y.W), small)));
    rows = (band - 1) * a.stride + a.kernel;
  }

  int64_t ring() const { return aligned(vectors * rows * pixels * kLanes); }
  int64_t zeros() const { return aligned(pixels * kMostWidth * kLanes); }
};

// `width` vectors from `first` on; in the ring, `row` floats from one row to the next.
struct Panel {
  int64_t first;
  int width;
  float* data;
  int64_t pixel, row;
};

// P pixels of one output row, `step` floats apart in the ring; taps in registers.
template <int K, int P>
FASTCNN_INLINE void depthwise_pixels(const float* const* in, int64_t at, int64_t step, int64_t pixel, const decltype(V::v)* taps,
                                     V bias, V* sums) {
#pragma GCC unroll 7
  for (int p = 0; p < P; ++p) sums[p] = bias;
#pragma GCC unroll 7
  for (int ky = 0; ky < K; ++ky) {
    const float* row = in[ky] + at;
#pragma GCC unroll 7
    for (int kx = 0; kx < K; ++kx)
#pragma GCC unroll 7
      for (int p = 0; p < P; ++p) sums[p] = fma(V::load(row + p * step + kx * pixel), V(taps[ky * K + kx]), sums[p]);
  }
}

class Block {
 public:
  explicit Block(const Call& call)
      : call_(call), a_(call.args<InvertedResidualArgs>()), x_(call.map(a_.x)), y_(call.map(a_.y)), shape_(a_, x_, y_),
        ring_(call.scratch), zeros_(ring_ + shape_.ring()), waiting_(zeros_ + shape_.zeros()) {}

  static int64_t scratch(const Call& call) {
    const auto& a = call.args<InvertedResidualArgs>();
    const Map& y = call.map(a.y);
    const Shape shape(a, call.map(a.x), y);
    return shape.ring() + shape.zeros() + (a.project == kNone ? 0 : shape.band * y.W * shape.depth);
  }

  void run(Range rows, const ChannelSums* sums) {
    clear_padding();
    for (int64_t n = 0; n < y_.images; ++n) {
      filled_ = std::max<int64_t>(0, rows.begin * a_.stride - a_.pad_top);
      for (int64_t oy = rows.begin; oy < rows.end; oy += shape_.band)
        round(n, {oy, std::min(oy + shape_.band, rows.end)}, sums);
    }
  }

 private:
  Panel panel(int64_t vector, int width) const {
    const int64_t pixel = width * kLanes, row = shape_.pixels * pixel;
    return {vector, width, ring_ + vector * kLanes * shape_.rows * shape_.pixels, pixel, row};
  }
  float* row_of(const Panel& p, int64_t iy) const { return p.data + iy % shape_.rows * p.row; }

  template <typename F> void each_panel(F&& body) const {
    const Cut cut{shape_.vectors};
    int64_t vector = 0;
    for (int64_t i = 0; i < cut.panels(); ++i) {
      body(panel(vector, cut.width(i)));
      vector += cut.width(i);
    }
  }

  void clear_padding() {
    std::memset(zeros_, 0, size_t(shape_.zeros()) * sizeof(float));
    const int64_t right = shape_.pixels - a_.pad_left - x_.W;
    each_panel([&](const Panel& p) {
      for (int64_t row = 0; row < shape_.rows; ++row) {
        float* pixels = p.data + row * p.row;
        std::memset(pixels, 0, size_t(a_.pad_left * p.pixel) * sizeof(float));
        std::memset(pixels + (a_.pad_left + x_.W) * p.pixel, 0, size_t(right * p.pixel) * sizeof(float));
      }
    });
  }

  void round(int64_t n, Range out, const ChannelSums* sums) {
    const int64_t below = std::min(x_.H, (out.end - 1) * a_.stride - a_.pad_top + a_.kernel);
    each_panel([&](const Panel& p) {
      for (int64_t iy = filled_; iy < below; ++iy) fill(p, n, iy);
      switch (a_.kernel) {
        case 3: depthwise<3>(p, n, out, sums); break;
        case 5: depthwise<5>(p, n, out, sums); break;
        default: depthwise<7>(p, n, out, sums);
      }
    });
    filled_ = std::max(filled_, below);
    if (a_.project != kNone) project(n, out);
  }

  void fill(const Panel& p, int64_t n, int64_t iy) {
    float* to = row_of(p, iy) + a_.pad_left * p.pixel;
    const float* from = x_.at(n, iy);
    const int64_t channel = p.first * kLanes;
    if (a_.expand == kNone) {
      const int64_t channels = std::min<int64_t>(p.pixel, x_.C - channel);
      for (int64_t ix = 0; ix < x_.W; ++ix, from += x_.pixel, to += p.pixel)
        over_lanes<V>(channels, [&](int64_t i, auto lanes) { lanes.load(from + channel + i).store(to + i); });
      return;
    }
    const TileInput input{from, x_.pixel, call_.weight(a_.expand) + channel * x_.C, x_.C * kLanes, x_.C};
    const float* bias = call_.weight(a_.expand_bias);
    const TileOutput output{to, p.pixel, bias == nullptr ? nullptr : bias + channel, nullptr, 0, kLanes, a_.expand_activation(), false};
    plan::panel(input, output, x_.W, p.width);
  }

  template <int K> void depthwise(const Panel& p, int64_t n, Range out, const ChannelSums* sums) {
    dispatch_activation(a_.middle(), [&](auto act) {
      for (int v = 0; v < p.width; ++v) {
        const int64_t channel = (p.first + v) * kLanes, left = a_.channels - channel;
        if (a_.project != kNone) strip<K>(act, All<V>{}, p, v, n, out, waiting_ + channel, y_.W * shape_.depth, shape_.depth, nullptr);
        else if (left >= kLanes) strip<K>(act, All<V>{}, p, v, n, out, y_.at(n, out.begin) + channel, y_.row, y_.pixel, sums);
        else strip<K>(act, First<V>{int(left)}, p, v, n, out, y_.at(n, out.begin) + channel, y_.row, y_.pixel, sums);
      }
    });
  }

  // The output rows of one vector of channels.
  template <int K, typename Act, typename Lanes>
  void strip(Act act, Lanes lanes, const Panel& p, int v, int64_t n, Range out, float* to, int64_t row, int64_t pixel,
             const ChannelSums* sums) {
    const int64_t channel = (p.first + v) * kLanes;
    const float* weight = call_.weight(a_.weight) + channel * K * K;
    const V bias = a_.bias == kNone ? V(0) : V::load(call_.weight(a_.bias) + channel);
    decltype(V::v) taps[K * K];
#pragma GCC unroll 49
    for (int t = 0; t < K * K; ++t) taps[t] = V::load(weight + t * kLanes).v;
    const int64_t step = a_.stride * p.pixel;
    for (int64_t oy = out.begin; oy < out.end; ++oy, to += row) {
      V total(0);
      const float* in[K];
      for (int ky = 0; ky < K; ++ky) {
        const int64_t iy = oy * a_.stride - a_.pad_top + ky;
        in[ky] = (iy >= 0 && iy < x_.H ? row_of(p, iy) : zeros_) + v * kLanes;
      }
      const auto store = [&](int64_t ox, V value) {
        value = act(value);
        if (sums != nullptr) total = total + lanes.keep(value);
        lanes.store(value, to + ox * pixel);
      };
      V values[kAtOnce];
      int64_t ox = 0;
      for (; ox + kAtOnce <= y_.W; ox += kAtOnce) {
        depthwise_pixels<K, kAtOnce>(in, ox * step, step, p.pixel, taps, bias, values);
#pragma GCC unroll 7
        for (int i = 0; i < kAtOnce; ++i) store(ox + i, values[i]);
      }
      for (; ox < y_.W; ++ox) {
        depthwise_pixels<K, 1>(in, ox * step, step, p.pixel, taps, bias, values);
        store(ox, values[0]);
      }
      if (sums != nullptr) {
        float* sum = sums->of(n, oy) + channel;
        lanes.store(lanes.load(sum) + total, sum);
      }
    }
  }

  void project(int64_t n, Range out) {
    const Map* residual = call_.optional_map(a_.residual);
    const Cut cut{ceil_div(y_.C, kLanes)};
    int64_t vector = 0;
    for (int64_t i = 0; i < cut.panels(); ++i) {
      const int width = cut.width(i);
      const int64_t channel = vector * kLanes, columns = std::min<int64_t>(y_.C - channel, width * kLanes);
      const TileInput input{waiting_, shape_.depth, call_.weight(a_.project) + channel * a_.channels, a_.channels * kLanes, a_.channels};
      const float* bias = call_.weight(a_.project_bias);
      const TileOutput output{y_.at(n, out.begin) + channel, y_.pixel, bias == nullptr ? nullptr : bias + channel,
                              residual == nullptr ? nullptr : residual->at(n, out.begin) + channel,
                              residual == nullptr ? 0 : residual->pixel, int(columns - (width - 1) * kLanes), a_.activation(), false};
      plan::panel(input, output, (out.end - out.begin) * y_.W, width);
      vector += width;
    }
  }

  const Call& call_;
  const InvertedResidualArgs& a_;
  const Map &x_, &y_;
  const Shape shape_;
  float *ring_, *zeros_, *waiting_;
  int64_t filled_ = 0;  // the first row of x that the ring has not had
};

void inverted_residual(const Call& call) {
  const auto& a = call.args<InvertedResidualArgs>();
  const Map& y = call.map(a.y);
  std::optional<ChannelSums> sums;
  if (a.sums != kNone) sums.emplace(call, call.map(a.sums), y);
  Block(call).run(sums ? sums->rows() : call.team.share(y.H), sums ? &*sums : nullptr);
  if (sums) sums->finish();
}

int64_t shared(const Call& call) {
  const auto& a = call.args<InvertedResidualArgs>();
  return a.sums == kNone ? 0 : ChannelSums::shared(call.map(a.y));
}

}  // namespace

extern const Kernel kInvertedResidual;
const Kernel kInvertedResidual{inverted_residual, Block::scratch, shared};

}  // namespace FASTCNN_ISA
}  // namespace plan
}  // namespace fastcnn
