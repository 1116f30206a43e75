// SPDX-License-Identifier: Apache-2.0
// The prologue of a pointwise convolution (conv_bn_act.h), on the copies of x that its product reads.
#pragma once

#include "any_activation.h"
#include "conv_bn_act.h"
#include "lanes.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {

FASTCNN_INLINE bool changes(const Prologue& p) {
  return p.activation != Activation::kIdentity || p.scale != nullptr || p.gate != nullptr;
}

template <typename A, typename F> struct PrologueOf {
  F functor;
  const A *scale, *shift, *gate;

  PrologueOf(const Prologue& p, F f)
      : functor(f), scale(static_cast<const A*>(p.scale)), shift(static_cast<const A*>(p.shift)),
        gate(static_cast<const A*>(p.gate)) {}

  // The C adjacent channels of a pixel of image n.
  template <typename S> FASTCNN_INLINE void pixel(const S* x, int64_t n, int64_t C, A* out) const {
    using V = Vec<A>;
    const A* by = gate == nullptr ? nullptr : gate + n * C;
    if (scale != nullptr && by != nullptr)
      over_lanes<V>(C, [&](int64_t c, auto lanes) {
        const V z = fma(lanes.load(x + c), lanes.load(scale + c), lanes.load(shift + c));
        lanes.store(functor(z) * lanes.load(by + c), out + c);
      });
    else if (scale != nullptr)
      over_lanes<V>(C, [&](int64_t c, auto lanes) {
        lanes.store(functor(fma(lanes.load(x + c), lanes.load(scale + c), lanes.load(shift + c))), out + c);
      });
    else if (by != nullptr)
      over_lanes<V>(C, [&](int64_t c, auto lanes) {
        lanes.store(functor(lanes.load(x + c)) * lanes.load(by + c), out + c);
      });
    else
      over_lanes<V>(C, [&](int64_t c, auto lanes) { lanes.store(functor(lanes.load(x + c)), out + c); });
  }
};

// In place, [C][vectors]: a panel of pixels of image n.
template <typename A> void change_panel(const Prologue& p, int64_t n, int64_t C, int vectors, A* panel) {
  using V = Vec<A>;
  dispatch_usual_activation(p.activation, [&](auto functor) {
    const PrologueOf<A, decltype(functor)> prologue(p, functor);
    for (int64_t c = 0; c < C; ++c) {
      const V scale(prologue.scale == nullptr ? A(1) : prologue.scale[c]);
      const V shift(prologue.scale == nullptr ? A(-0.0) : prologue.shift[c]);  // x + -0 is x
      const V gate(prologue.gate == nullptr ? A(1) : prologue.gate[n * C + c]);
      A* line = panel + c * vectors * V::kLanes;
      for (int v = 0; v < vectors; ++v)
        (functor(fma(V::load(line + v * V::kLanes), scale, shift)) * gate).store(line + v * V::kLanes);
    }
  });
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
