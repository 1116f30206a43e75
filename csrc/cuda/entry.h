// SPDX-License-Identifier: Apache-2.0
// What every CUDA entry function does around its launch: the device of x made current, its stream, a launch error turned into words.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "../cpu/tensor.h"

namespace fastcnn {

class DeviceOf {
 public:
  explicit DeviceOf(const Tensor& x) : guard_(int32_t(x.get_device_index())) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(int32_t(x.get_device_index()), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

inline void check_launch(const char* op, cudaError_t error) {
  STD_TORCH_CHECK(error != cudaErrorNoKernelImageForDevice, op,
                  ": this build has no code for this GPU; `fastcnn info` lists what it has, FASTCNN_CUDA_ARCHS at build time adds to it");
  STD_TORCH_CHECK(error == cudaSuccess, op, ": the kernel could not be launched: ", cudaGetErrorString(error));
}

inline void check_beside(const char* op, const Tensor& tensor, const Tensor& x, const char* name) {
  STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == x.get_device_index(), "fastcnn: ", op, ": ", name,
                  " must be on the device of x");
}

inline void check_like(const char* op, const Tensor& tensor, const Tensor& x, const char* name) {
  check_beside(op, tensor, x, name);
  STD_TORCH_CHECK(tensor.scalar_type() == x.scalar_type(), "fastcnn: ", op, ": ", name, " must have the dtype of x");
}

}  // namespace fastcnn
