// SPDX-License-Identifier: Apache-2.0
// Dense kH x kW convolution of few input channels: the first layer of a net, 3x3 or 7x7 on RGB. Its output is the
// net's largest map, so scale, shift, residual and activation must not cost another pass over it.
//
// A row of output pixels is a matrix product on gemm.h.
// channels_last: pixels are the broadcast operand. The kH input rows that an output row reads are copied, with their
// padding, to a scratch in L1, where the patch of every pixel is kH segments of kW C consecutive values. The packed
// weights, the vector operand, stay with the thread.
// NCHW: pixels of a row run along the vectors; their patches are written out, [C kH kW][pixels] (im2col), C kH kW values a
// pixel against C kH kW multiply-adds for each of its output channels.
#include "conv_bn_act.h"

#include "../common/dispatch.h"
#include "conv_bn_act_store.h"
#include "gemm.h"
#include "parallel.h"
#include "rows.h"
#include "stream.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {
namespace {

constexpr int64_t kGrainMacs = 1 << 17;  // worth a thread

int64_t grain_of(const ConvGeometry& g) { return ceil_div(kGrainMacs, g.Wo * g.O * g.C * g.kH * g.kW); }

template <typename S> FASTCNN_INLINE Accumulator<S> weight_at(const DirectArgs& args, int64_t o, int64_t c, int64_t kh, int64_t kw) {
  const int64_t* stride = args.weight_stride;
  return to_accumulator(static_cast<const S*>(args.weight)[o * stride[0] + c * stride[1] + kh * stride[2] + kw * stride[3]]);
}

// Input row h with its padding, pitch values; columns beyond what the kernel reads are left out. All zeros outside x.
template <typename S> void copy_padded_row(const ConvGeometry& g, const S* image, int64_t h, int64_t pitch, Accumulator<S>* out) {
  if (h < 0 || h >= g.H) return fill_zero(out, pitch);
  const int64_t left = g.pad_left * g.C < pitch ? g.pad_left * g.C : pitch;
  const int64_t inside = g.W * g.C < pitch - left ? g.W * g.C : pitch - left;
  fill_zero(out, left);
  widen_row(image + h * g.W * g.C, out + left, inside);
  fill_zero(out + left + inside, pitch - left - inside);
}

template <typename S> void run_channels_last(const DirectArgs& args, const Store<S>& store) {
  using A = Accumulator<S>;
  constexpr int64_t kLanes = Vec<A>::kLanes;
  const ConvGeometry& g = args.geometry;
  const int64_t depth = g.kH * g.kW * g.C, segment = g.kW * g.C, padded = ceil_div(g.O, kLanes) * kLanes;
  const int64_t pitch = ((g.Wo - 1) * g.stride_w + g.kW) * g.C;
  const Panels panels(padded / kLanes);
  const bool streams = is_streamed(args.y, g.O * int64_t(sizeof(S)), g.N * g.Ho * g.Wo);
  parallel_for(g.N * g.Ho, grain_of(g), [&](int64_t begin, int64_t end) {
    constexpr int64_t kTile = kMostRows * kMostVectors * kLanes;
    Workspace memory(Workspace::bytes<A>(padded * depth) + Workspace::bytes<A>(g.kH * pitch) + Workspace::bytes<A>(kTile));
    A* packed = memory.take<A>(padded * depth);
    A* rows = memory.take<A>(g.kH * pitch);
    A* partial = memory.take<A>(kTile);
    for (int64_t p = 0; p < panels.count; ++p) {
      const int64_t channel = panels.begin(p) * kLanes, width = panels.width(p) * kLanes;
      A* to = packed + channel * depth;
      for (int64_t kh = 0; kh < g.kH; ++kh)
        for (int64_t kw = 0; kw < g.kW; ++kw)
          for (int64_t c = 0; c < g.C; ++c, to += width)
            for (int64_t o = 0; o < width; ++o)
              to[o] = channel + o < g.O ? weight_at<S>(args, channel + o, c, kh, kw) : A(0);
    }
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / g.Ho, ho = row % g.Ho;
      const S* image = static_cast<const S*>(args.x) + n * g.H * g.W * g.C;
      for (int64_t kh = 0; kh < g.kH; ++kh)
        copy_padded_row(g, image, ho * g.stride_h + kh * g.dilation_h - g.pad_top, pitch, rows + kh * pitch);
      for (int64_t p = 0; p < panels.count; ++p) {
        const int vectors = panels.width(p);
        const int64_t channel = panels.begin(p) * kLanes, width = vectors * kLanes, start = row * g.Wo * g.O + channel;
        const Target<S> to{at(static_cast<const A*>(args.scale), channel),
                           at(static_cast<const A*>(args.shift), channel),
                           at(static_cast<const S*>(args.residual), start),
                           static_cast<S*>(args.y) + start, g.O, vectors,
                           g.O - channel < width ? g.O - channel : width, streams};
        multiply(Rows<A>{rows, g.stride_w * g.C, 1, g.kH, pitch}, g.Wo, packed + channel * depth, width, segment,
                 partial, to, store);
      }
    }
    if (streams) stream_fence();
  });
}

// to[j] = from[j * stride] for j < count.
template <typename S> FASTCNN_INLINE void take_every(const S* from, int64_t stride, int64_t count, Accumulator<S>* to) {
  if (count <= 0) return;
  if (stride == 1) widen_row(from, to, count);
  else if (stride == 2) split_row(from, 2 * count - 1, to, count, to, 0);
  else
    for (int64_t j = 0; j < count; ++j) to[j] = to_accumulator(from[j * stride]);
}

// Patches of `width` pixels of row ho from wo on, [C kH kW][width]; beyond the row's end they are zeros.
template <typename S>
void write_patch_rows(const ConvGeometry& g, const S* image, int64_t ho, int64_t wo, int64_t width, Accumulator<S>* out) {
  const auto clipped = [&](int64_t i) { return i < 0 ? 0 : i < width ? i : width; };
  for (int64_t c = 0; c < g.C; ++c)
    for (int64_t kh = 0; kh < g.kH; ++kh) {
      const int64_t h = ho * g.stride_h + kh * g.dilation_h - g.pad_top;
      for (int64_t kw = 0; kw < g.kW; ++kw, out += width) {
        // Pixel i reads column w + i * stride_w of x: inside it for i in [first, last).
        const int64_t w = wo * g.stride_w + kw - g.pad_left;
        const bool inside = h >= 0 && h < g.H;
        const int64_t first = inside && w < 0 ? clipped(ceil_div(-w, g.stride_w)) : 0;
        const int64_t last = inside && w < g.W ? clipped(ceil_div(g.W - w, g.stride_w)) : 0;
        if (last <= first) {
          fill_zero(out, width);
          continue;
        }
        fill_zero(out, first);
        take_every(image + (c * g.H + h) * g.W + w + first * g.stride_w, g.stride_w, last - first, out + first);
        fill_zero(out + last, width - last);
      }
    }
}

template <typename S> void run_nchw(const DirectArgs& args, const Store<S>& store) {
  using A = Accumulator<S>;
  constexpr int64_t kLanes = Vec<A>::kLanes;
  const ConvGeometry& g = args.geometry;
  const int64_t depth = g.C * g.kH * g.kW, HW = g.Ho * g.Wo;
  const Panels panels(ceil_div(g.Wo, kLanes));
  const bool streams = is_streamed(args.y, g.Wo * int64_t(sizeof(S)), g.N * g.O * g.Ho);
  parallel_for(g.N * g.Ho, grain_of(g), [&](int64_t begin, int64_t end) {
    const int64_t widest = kMostVectors * kLanes, sums = partial_size<A>(g.O, depth);
    Workspace memory(Workspace::bytes<A>(g.O * depth) + Workspace::bytes<A>(widest * depth) + Workspace::bytes<A>(sums));
    A* weight = memory.take<A>(g.O * depth);
    A* patches = memory.take<A>(widest * depth);
    A* partial = memory.take<A>(sums);
    A* to = weight;
    for (int64_t o = 0; o < g.O; ++o)
      for (int64_t c = 0; c < g.C; ++c)
        for (int64_t kh = 0; kh < g.kH; ++kh)
          for (int64_t kw = 0; kw < g.kW; ++kw) *to++ = weight_at<S>(args, o, c, kh, kw);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / g.Ho, ho = row % g.Ho;
      const S* image = static_cast<const S*>(args.x) + n * g.C * g.H * g.W;
      for (int64_t p = 0; p < panels.count; ++p) {
        const int vectors = panels.width(p);
        const int64_t wo = panels.begin(p) * kLanes, width = vectors * kLanes;
        const int64_t start = n * g.O * HW + ho * g.Wo + wo;
        write_patch_rows(g, image, ho, wo, width, patches);
        const Target<S> target{static_cast<const A*>(args.scale), static_cast<const A*>(args.shift),
                               at(static_cast<const S*>(args.residual), start), static_cast<S*>(args.y) + start, HW,
                               vectors, g.Wo - wo < width ? g.Wo - wo : width, streams};
        multiply(Rows<A>{weight, depth}, g.O, patches, width, depth, partial, target, store);
      }
    }
    if (streams) stream_fence();
  });
}

}  // namespace

void direct_forward_kernel(const DirectArgs& args) {
  dispatch_dtype(args.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    const Layout layout = args.geometry.layout;
    const Store<S> store = store_for<S>(args.activation, layout);
    if (layout == Layout::kNHWC) run_channels_last<S>(args, store);
    else run_nchw<S>(args, store);
  });
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
