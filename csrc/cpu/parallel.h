// SPDX-License-Identifier: Apache-2.0
// Threads for kernels without naming torch: parallel_for runs on PyTorch's own intra-op pool (torch.set_num_threads holds), through the one
// function that parallel.cpp implements with the stable ABI.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../common/namespace.h"

namespace fastcnn {

using RangeFunction = void (*)(int64_t begin, int64_t end, void* context);
void parallel_run(int64_t count, int64_t grain, RangeFunction function, void* context);
int thread_count();

inline namespace FASTCNN_ISA {

// Calls body(begin, end) on disjoint ranges that cover [0, count), none shorter than grain unless it is the last.
template <typename F> FASTCNN_INLINE void parallel_for(int64_t count, int64_t grain, F&& body) {
  if (count <= 0) return;
  if (count <= grain) return body(int64_t(0), count);
  using Body = std::remove_reference_t<F>;
  parallel_run(count, grain, [](int64_t begin, int64_t end, void* context) { (*static_cast<Body*>(context))(begin, end); },
               const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace FASTCNN_ISA
}  // namespace fastcnn
