// SPDX-License-Identifier: Apache-2.0
// The epilogues of conv_bn_act_store.h, one function for every dtype, activation and layout.
#include "conv_bn_act_store.h"

#include "../common/dispatch.h"
#include "stream.h"

namespace fastcnn {
inline namespace FASTCNN_ISA {
namespace {

template <typename S, typename F, bool kWhole>
FASTCNN_INLINE void store_vector(const S* residual, S* y, VecOf<S> sum, VecOf<S> scale, VecOf<S> shift, int lanes,
                                 bool streams) {
  VecOf<S> value = fma(sum, scale, shift);
  if (residual != nullptr) value = value + (kWhole ? VecOf<S>::load(residual) : VecOf<S>::load(residual, lanes));
  value = F()(value);
  if (kWhole && streams) stream(value, y);
  else if (kWhole) value.store(y);
  else value.store(y, lanes);
}

// kChannelLanes: output channels run along the vectors (channels_last), else along the rows.
template <typename S, typename F, bool kChannelLanes>
void store_tile(const Target<S>& to, const Accumulator<S>* tile, int64_t first_row, int64_t rows) {
  using V = VecOf<S>;
  for (int v = 0; v < to.vectors; ++v) {
    const int64_t column = v * V::kLanes;
    const int lanes = int(to.columns - column < V::kLanes ? to.columns - column : V::kLanes);
    V scale(1), shift(0);
    if (kChannelLanes && to.scale != nullptr) scale = V::load(to.scale + column, lanes);
    if (kChannelLanes && to.shift != nullptr) shift = V::load(to.shift + column, lanes);
    for (int64_t m = 0; m < rows; ++m) {
      const int64_t offset = (first_row + m) * to.ldy + column;
      if (!kChannelLanes && to.scale != nullptr) scale = V(to.scale[first_row + m]);
      if (!kChannelLanes && to.shift != nullptr) shift = V(to.shift[first_row + m]);
      const S* residual = at(to.residual, offset);
      const V sum = V::load(tile + (m * to.vectors + v) * V::kLanes);
      if (lanes == V::kLanes) store_vector<S, F, true>(residual, to.y + offset, sum, scale, shift, lanes, to.streams);
      else store_vector<S, F, false>(residual, to.y + offset, sum, scale, shift, lanes, to.streams);
    }
  }
}

}  // namespace

template <typename S> Store<S> store_for(Activation activation, Layout layout) {
  using A = Accumulator<S>;
  const bool channel_lanes = layout == Layout::kNHWC;
  Store<S> store{};
  dispatch_activation(activation, [&](auto functor) {
    using F = decltype(functor);
    store.function = channel_lanes ? store_tile<S, F, true> : store_tile<S, F, false>;
  });
  const bool clamps = activation == Activation::kIdentity || activation == Activation::kRelu || activation == Activation::kRelu6;
  if (sizeof(S) != sizeof(A) || !clamps) return store;
  const A infinity = A(__builtin_inf());
  store.ending = channel_lanes ? Ending::kLanes : Ending::kRows;
  store.low = activation == Activation::kIdentity ? -infinity : A(0);
  store.high = activation == Activation::kRelu6 ? A(6) : infinity;
  return store;
}

template Store<float> store_for<float>(Activation, Layout);
template Store<Half> store_for<Half>(Activation, Layout);
template Store<BFloat16> store_for<BFloat16>(Activation, Layout);
#if FASTCNN_WITH_DOUBLE
template Store<double> store_for<double>(Activation, Layout);
#endif

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
