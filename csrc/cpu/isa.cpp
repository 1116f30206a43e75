// SPDX-License-Identifier: Apache-2.0
#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace fastcnn {
namespace {

Isa best_isa() {
#if FASTCNN_BUILD_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return Isa::kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) return Isa::kAvx2;
#endif
  return Isa::kPlain;
}

Isa chosen_isa() {
  const Isa best = best_isa();
  const char* wanted = std::getenv("FASTCNN_CPU_ISA");
  if (wanted == nullptr) return best;
  for (const Isa isa : {Isa::kPlain, Isa::kAvx2, Isa::kAvx512})
    if (std::strcmp(wanted, isa_name(isa)) == 0) return isa <= best ? isa : best;
  return best;  // fastcnn/_library.py names an unknown or unavailable value
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kPlain: return "plain";
    case Isa::kAvx2: return "avx2";
    case Isa::kAvx512: return "avx512";
  }
  return "plain";
}

Isa active_isa() {
  static const Isa isa = chosen_isa();
  return isa;
}

}  // namespace fastcnn

// For `fastcnn info` and the loader, by ctypes.
#define FASTCNN_EXPORT extern "C" __attribute__((visibility("default")))
FASTCNN_EXPORT const char* fastcnn_isa_active() { return fastcnn::isa_name(fastcnn::active_isa()); }
FASTCNN_EXPORT const char* fastcnn_isa_machine() { return fastcnn::isa_name(fastcnn::best_isa()); }
