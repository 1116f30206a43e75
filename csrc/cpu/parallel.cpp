// SPDX-License-Identifier: Apache-2.0
#include "parallel.h"

#include <torch/csrc/stable/tensor.h>

namespace fastcnn {

void parallel_run(int64_t count, int64_t grain, RangeFunction function, void* context) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, count, grain, function, context));
}

int thread_count() {
  uint32_t threads = 1;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_get_num_threads(&threads));
  return int(threads);
}

}  // namespace fastcnn
