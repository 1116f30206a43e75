// SPDX-License-Identifier: Apache-2.0
// Convolutions on the matrix unit (AMX): operands rounded to bfloat16 as they are read, sums, bias, residual and activation
// in float32, maps in memory in float32.
//
// Four accumulators of 16 x 16 take a block of 32 pixels by 32 output channels; a step of 32 values of depth loads two tiles
// of each operand and multiplies them four ways, 64 cycles of the unit for 4 KB of operands. The block of pixels is
// converted into scratch once, [32][depth], and every pair of weight tiles passes over it; rows beyond the last pixel hold
// what was there before and are not stored. A window of a k x k convolution is gathered tap by tap, from a copy of the map in
// bfloat16 that the team makes together first, so that its values are rounded once and not once a tap.
// Weights: [ceil(O / 16)][depth / 32][16 pairs of depth][16 channels][2], depth padded with zeros to 32 a tap.
#include "kernels.h"
#include "tile.h"

#if defined(__AVX512F__) && defined(__linux__)
#include <cstring>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#define FASTCNN_AMX __attribute__((target("amx-tile,amx-bf16,avx512bf16")))
#endif

namespace fastcnn {
namespace plan {
inline namespace FASTCNN_ISA {

#if defined(__AVX512F__) && defined(__linux__)

namespace {

constexpr int64_t kRows = 32, kColumns = 32;  // of a block of sums
constexpr int64_t kDepth = 32;                // values of a tile's row
constexpr int64_t kTile = 16 * kDepth;        // bfloat16 values of a tile
constexpr int64_t kSums = kRows * kColumns;   // floats
static_assert(kTile * 2 == 1024 && kLanes == 16, "the largest tile: 16 rows of 64 bytes");

int64_t padded(int64_t depth) { return ceil_div(depth, kDepth) * kDepth; }

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
  TileConfig() {
    for (int i = 0; i < 8; ++i) bytes[i] = 64, rows[i] = 16;
  }
};

// GCC's tile intrinsics do not say which memory they touch: without this it drops or moves stores around them.
FASTCNN_INLINE void memory_barrier() { asm volatile("" : : : "memory"); }

FASTCNN_AMX void round_row(const float* from, int64_t count, uint16_t* to) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), __m256i(_mm512_cvtneps_pbh(_mm512_loadu_ps(from + i))));
  if (i < count) {
    const __mmask16 mask = V::first(int(count - i));
    _mm256_mask_storeu_epi16(to + i, mask, __m256i(_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, from + i))));
    i = count;
  }
  for (; i < padded(count); ++i) to[i] = 0;
}

// sums[32][32] = a[32][depth] times two weight tiles' columns; both row tiles, or the first alone.
FASTCNN_AMX void multiply(const uint16_t* a, int64_t depth, const uint16_t* b0, const uint16_t* b1, bool second_rows, float* sums) {
  const int64_t stride = depth * 2;
  memory_barrier();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  if (second_rows) {
    for (int64_t k = 0; k < depth; k += kDepth, b0 += kTile, b1 += kTile) {
      _tile_loadd(4, a + k, stride);
      _tile_loadd(6, b0, 64);
      _tile_loadd(7, b1, 64);
      _tile_loadd(5, a + 16 * depth + k, stride);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(2, sums + 16 * kColumns, kColumns * 4);
    _tile_stored(3, sums + 16 * kColumns + 16, kColumns * 4);
  } else {
    for (int64_t k = 0; k < depth; k += kDepth, b0 += kTile, b1 += kTile) {
      _tile_loadd(4, a + k, stride);
      _tile_loadd(6, b0, 64);
      _tile_loadd(7, b1, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
    }
  }
  _tile_stored(0, sums, kColumns * 4);
  _tile_stored(1, sums + 16, kColumns * 4);
  memory_barrier();
}

FASTCNN_AMX void configure(const TileConfig& config) {
  memory_barrier();
  _tile_loadconfig(&config);
}
FASTCNN_AMX void release() { _tile_release(); }

struct Target {
  const Map& y;
  const Map* residual;
  const float* bias;
  Activation activation;
};

// Where pixel `p` of all images lies.
float* pixel_at(const Map& m, int64_t p) {
  const int64_t pixels = m.H * m.W, image = p / pixels, inside = p - image * pixels;
  return m.data + image * m.image + inside * m.pixel;
}

void finish(const Target& to, const float* sums, int64_t first, int64_t count, int64_t channel) {
  const int64_t columns = std::min(kColumns, to.y.C - channel);
  dispatch_activation(to.activation, [&](auto functor) {
    for (int64_t r = 0; r < count; ++r) {
      float* y = pixel_at(to.y, first + r) + channel;
      const float* residual = to.residual == nullptr ? nullptr : pixel_at(*to.residual, first + r) + channel;
      over_lanes<V>(columns, [&](int64_t i, auto lanes) {
        V value = V::load(sums + r * kColumns + i);
        if (to.bias != nullptr) value = value + V::load(to.bias + channel + i);
        if (residual != nullptr) value = value + lanes.load(residual + i);
        lanes.store(functor(value), y + i);
      });
    }
  });
}

struct Share {
  Range pixels, pairs;  // of 32 channels
};

// By pixels, or by output channels where the weights are what a thread has to read most of.
Share share(const Map& y, int64_t depth, const Team& team) {
  const int64_t pixels = y.pixels(), pairs = ceil_div(y.C, kColumns), blocks = ceil_div(pixels, kRows);
  const bool by_channels = depth * y.C > 4 * pixels * depth && pairs >= team.size;
  if (by_channels) return {{0, pixels}, team.share(pairs)};
  const Range mine = team.share(blocks);
  return {{mine.begin * kRows, std::min(pixels, mine.end * kRows)}, {0, pairs}};
}

// The products of one block of pixels, which `a` holds.
void block(const Target& to, const uint16_t* a, int64_t depth, const uint16_t* weights, Range pairs, int64_t first, int64_t count,
           float* sums) {
  const int64_t tiles = ceil_div(to.y.C, 16), column = depth / kDepth * kTile;  // of weights, from 16 channels to the next
  for (int64_t pair = pairs.begin; pair < pairs.end; ++pair) {
    const uint16_t* b0 = weights + 2 * pair * column;
    const uint16_t* b1 = 2 * pair + 1 < tiles ? b0 + column : b0;
    multiply(a, depth, b0, b1, count > 16, sums);
    finish(to, sums, first, count, pair * kColumns);
  }
}

void pointwise(const Call& call) {
  const auto& a = call.args<PointwiseArgs>();
  const Map &x = call.map(a.x), &y = call.map(a.y);
  const float *scale = call.weight(a.scale), *shift = call.weight(a.shift);
  const int64_t depth = padded(x.C), pixels = x.H * x.W;
  const Share mine = share(y, depth, call.team);
  const Target to{y, call.optional_map(a.residual), call.weight(a.bias), a.activation()};
  const bool prologue = a.gate != kNone || scale != nullptr || shift != nullptr || a.prologue() != Activation::kIdentity;
  float *sums = call.scratch, *row = sums + kSums;
  uint16_t* operand = reinterpret_cast<uint16_t*>(row + aligned(x.C));
  configure(TileConfig());
  for (int64_t first = mine.pixels.begin; first < mine.pixels.end; first += kRows) {
    const int64_t count = std::min(kRows, mine.pixels.end - first);
    for (int64_t r = 0; r < count; ++r) {
      const float* from = pixel_at(x, first + r);
      if (prologue) {
        const float* gate = a.gate == kNone ? nullptr : call.map(a.gate).at((first + r) / pixels);
        dispatch_activation(a.prologue(), [&](auto functor) {
          over_lanes<V>(x.C, [&](int64_t i, auto lanes) {
            V value = lanes.load(from + i);
            if (scale != nullptr) value = value * lanes.load(scale + i);
            if (shift != nullptr) value = value + lanes.load(shift + i);
            value = functor(value);
            if (gate != nullptr) value = value * lanes.load(gate + i);
            lanes.store(value, row + i);
          });
        });
        from = row;
      }
      round_row(from, x.C, operand + r * depth);
    }
    block(to, operand, depth, reinterpret_cast<const uint16_t*>(call.weight(a.weight)), mine.pairs, first, count, sums);
  }
  release();
}

int64_t pointwise_scratch(const Call& call) {
  const Map& x = call.map(call.args<PointwiseArgs>().x);
  return kSums + aligned(x.C) + kRows * padded(x.C) / 2;
}

void conv(const Call& call) {
  const auto& a = call.args<ConvArgs>();
  const Map &x = call.map(a.x), &y = call.map(a.y);
  const int64_t each = padded(x.C), taps = a.kernel_h * a.kernel_w, depth = taps * each;
  const Target to{y, call.optional_map(a.residual), call.weight(a.bias), a.activation()};
  float* sums = call.scratch;
  uint16_t* operand = reinterpret_cast<uint16_t*>(sums + kSums);
  uint16_t* rounded = reinterpret_cast<uint16_t*>(call.shared);
  const Range convert = call.team.share(x.pixels());
  for (int64_t p = convert.begin; p < convert.end; ++p) round_row(pixel_at(x, p), x.C, rounded + p * each);
  call.team.wait();
  const Share mine = share(y, depth, call.team);
  const int64_t out_pixels = y.H * y.W;
  configure(TileConfig());
  for (int64_t first = mine.pixels.begin; first < mine.pixels.end; first += kRows) {
    const int64_t count = std::min(kRows, mine.pixels.end - first);
    for (int64_t r = 0; r < count; ++r) {
      const int64_t image = (first + r) / out_pixels, inside = (first + r) - image * out_pixels;
      const int64_t top = inside / y.W * a.stride_h - a.pad_top, left = inside % y.W * a.stride_w - a.pad_left;
      uint16_t* out = operand + r * depth;
      for (int64_t ky = 0; ky < a.kernel_h; ++ky)
        for (int64_t kx = 0; kx < a.kernel_w; ++kx, out += each) {
          const int64_t iy = top + ky * a.dilation_h, ix = left + kx * a.dilation_w;
          const bool inside_x = iy >= 0 && iy < x.H && ix >= 0 && ix < x.W;
          if (inside_x) std::memcpy(out, rounded + ((image * x.H + iy) * x.W + ix) * each, size_t(each) * 2);
          else std::memset(out, 0, size_t(each) * 2);
        }
    }
    block(to, operand, depth, reinterpret_cast<const uint16_t*>(call.weight(a.weight)), mine.pairs, first, count, sums);
  }
  release();
}

int64_t conv_scratch(const Call& call) {
  const auto& a = call.args<ConvArgs>();
  return kSums + kRows * a.kernel_h * a.kernel_w * padded(call.map(a.x).C) / 2;
}

int64_t conv_shared(const Call& call) {
  const Map& x = call.map(call.args<ConvArgs>().x);
  return x.pixels() * padded(x.C) / 2;
}

// The kernel of the operating system hands out the unit's registers on request only.
bool granted() {
  constexpr int kRequest = 0x1023, kTileData = 18;
  static const bool found = __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
                            __builtin_cpu_supports("avx512bf16") && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  return found;
}

}  // namespace

Kernel pointwise_bf16() { return granted() ? Kernel{pointwise, pointwise_scratch} : Kernel{}; }
Kernel conv_bf16() { return granted() ? Kernel{conv, conv_scratch, conv_shared} : Kernel{}; }

#else

Kernel pointwise_bf16() { return {}; }
Kernel conv_bf16() { return {}; }

#endif

}  // namespace FASTCNN_ISA
}  // namespace plan
}  // namespace fastcnn
