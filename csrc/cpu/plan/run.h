// SPDX-License-Identifier: Apache-2.0
// Runs a program over a batch: the one parallel region of a network.
#pragma once

#include <vector>

#include "step.h"

namespace fastcnn {
namespace plan {

#if FASTCNN_BUILD_X86
namespace avx512 { const Kernels& plan_kernels(); }
namespace avx2 { const Kernels& plan_kernels(); }
#endif
namespace plain { const Kernels& plan_kernels(); }

const Kernels& active_kernels();

// An input or output as the caller holds it, strides in floats.
struct External {
  float* data;
  int64_t image, row, pixel, channel;
};

// inputs and outputs fit the program's values (run_plan.cpp checks). seconds: nullptr, or one sum per step, of the time
// between barriers, or where every thread has images of its own, of all threads' times over their number.
void run(const Program& program, const std::vector<External>& inputs, const std::vector<External>& outputs,
         const float* weights, int64_t images, double* seconds);

}  // namespace plan
}  // namespace fastcnn
