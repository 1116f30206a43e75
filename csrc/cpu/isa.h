// SPDX-License-Identifier: Apache-2.0
// Which build of a kernel runs. <op>.kernel.cpp is compiled once per instruction set into fastcnn::<set>::<kernel>; FASTCNN_KERNEL declares the
// copies and defines fastcnn::<kernel>_dispatch, which calls the one this process uses. To the entry functions that the CUDA library shares,
// <kernel>_dispatch is the launch, which csrc/cuda/<op>.cu defines.
#pragma once

#include "../common/scalar.h"

namespace fastcnn {

enum class Isa : int { kPlain, kAvx2, kAvx512 };

// The best set that both the build and this processor have; FASTCNN_CPU_ISA=plain|avx2|avx512 lowers it. Read once.
Isa active_isa();
const char* isa_name(Isa isa);

// double runs on the plain build whatever the machine has.
inline Isa isa_for(Dtype dtype) { return dtype == Dtype::kFloat64 ? Isa::kPlain : active_isa(); }

}  // namespace fastcnn

#if defined(__CUDACC__)
#define FASTCNN_KERNEL(kernel, Args) \
  namespace fastcnn { void kernel##_dispatch(const Args& args); }
#elif FASTCNN_BUILD_X86
#define FASTCNN_KERNEL(kernel, Args)                                \
  namespace fastcnn {                                               \
  namespace plain { void kernel(const Args&); }              \
  namespace avx2 { void kernel(const Args&); }               \
  namespace avx512 { void kernel(const Args&); }             \
  inline void kernel##_dispatch(const Args& args) {                 \
    switch (isa_for(args.dtype)) {                                  \
      case Isa::kAvx512: return avx512::kernel(args);               \
      case Isa::kAvx2: return avx2::kernel(args);                   \
      case Isa::kPlain: return plain::kernel(args);                 \
    }                                                               \
  }                                                                 \
  }
#else
#define FASTCNN_KERNEL(kernel, Args)                                                      \
  namespace fastcnn {                                                                     \
  namespace plain { void kernel(const Args&); }                                    \
  inline void kernel##_dispatch(const Args& args) { return plain::kernel(args); }         \
  }
#endif
