// SPDX-License-Identifier: Apache-2.0
// The schemas, from fastcnn/schemas.txt by way of CMake. This library must be loaded before anything registers an implementation.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fastcnn, m) {
  static const char* const kSchemas[] = {
#include "schemas.inc"
  };
  for (const char* schema : kSchemas) m.def(schema);
}
