// SPDX-License-Identifier: Apache-2.0
// What the dense convolutions do with a tile of finished sums: scale, shift, residual, activation, one rounding, store.
#pragma once

#include "../common/epilogue.h"
#include "../common/shape.h"
#include "gemm.h"
#include "simd.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {

template <typename T> FASTCNN_INLINE T* at(T* optional, int64_t offset) {
  return optional == nullptr ? nullptr : optional + offset;
}

// Where a panel's finished tiles go.
template <typename S> struct Target {
  const Accumulator<S>* scale;  // of the panel's first channel (channels_last), of row 0 (NCHW); null: 1
  const Accumulator<S>* shift;  // null: 0
  const S* residual;
  S* y;
  int64_t ldy;
  int vectors;
  int64_t columns;  // valid ones, at most vectors * kLanes
  bool streams;     // see stream.h
};

template <typename S>
using StoreFunction = void (*)(const Target<S>&, const Accumulator<S>* tile, int64_t first_row, int64_t rows);

// How the tiles of one call end. What fits the clamp of a tile's own epilogue leaves the registers once; other
// activations and half types pass through `partial` and a function for each.
template <typename S> struct Store {
  StoreFunction<S> function;  // compiled in conv_bn_act_store.kernel.cpp
  Ending ending;              // kPartial: use the function
  Accumulator<S> low, high;
};

template <typename S> Store<S> store_for(Activation activation, Layout layout);

// rows x one panel of the product, into its place in y.
template <typename S>
FASTCNN_INLINE void multiply(const Rows<Accumulator<S>>& a, int64_t rows, const Accumulator<S>* b, int64_t ldb,
                             int64_t depth, Accumulator<S>* partial, const Target<S>& to, const Store<S>& store) {
  Epilogue<Accumulator<S>> epilogue;
  if constexpr (sizeof(S) == sizeof(Accumulator<S>))
    epilogue = {store.ending, to.scale, to.shift, to.residual, to.y, to.ldy, to.columns, store.low, store.high, to.streams};
  gemm_panel(a, rows, b, ldb, to.vectors, depth, partial, epilogue,
             [&](const Accumulator<S>* tile, int64_t row, int64_t height) { store.function(to, tile, row, height); });
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
