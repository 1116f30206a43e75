// SPDX-License-Identifier: Apache-2.0
// Entry code that the CPU library shares, made an entry function of CUDA.
#pragma once

#include <initializer_list>
#include <string>

#include "entry.h"

namespace fastcnn {

template <typename T> const Tensor* tensor_of(const T&) { return nullptr; }
inline const Tensor* tensor_of(const Tensor& tensor) { return &tensor; }
inline const Tensor* tensor_of(const OptionalTensor& tensor) { return tensor ? &*tensor : nullptr; }

// Entry code that the CPU library shares, as CUDA calls it: every tensor is on the device of x, and that device is
// current. Op::kName is the op's, Op::kTensors the names of its leading arguments, the tensors, x among them.
template <typename Op, auto kEntry> struct OnDevice;

template <typename Op, typename Result, typename... Arguments, Result (*kEntry)(Arguments...)>
struct OnDevice<Op, kEntry> {
  static Result call(Arguments... arguments) {
    const std::initializer_list<const Tensor*> tensors = {tensor_of(arguments)...};
    const Tensor* x = nullptr;
    auto tensor = tensors.begin();
    for (const char* name : Op::kTensors) {
      if (std::string(name) == "x") x = *tensor;
      ++tensor;
    }
    tensor = tensors.begin();
    for (const char* name : Op::kTensors) {
      if (*tensor != nullptr) check_beside(Op::kName, **tensor, *x, name);
      ++tensor;
    }
    const DeviceOf device(*x);
    return kEntry(arguments...);
  }
};

}  // namespace fastcnn
