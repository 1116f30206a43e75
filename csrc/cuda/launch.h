// SPDX-License-Identifier: Apache-2.0
// The one place where a kernel is launched, free of torch. Kernels and launchers are written against it, so that
// whatever stands in for the device (the emulator of the tests, under FASTCNN_EMULATOR) replaces launch(),
// dynamic_shared() and most_shared() only.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef FASTCNN_EMULATOR
#include <simt.h>
#else
#include <cuda_runtime.h>

namespace fastcnn {

// The bytes of dynamic shared memory that a block can have on the current device; 0 where there is none to ask.
inline int64_t most_shared() {
  int device = 0, bytes = 0;
  if (cudaGetDevice(&device) == cudaSuccess)
    cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return bytes;
}

// Converts each argument to the kernel's own parameter type first: a wrong type is a compile error, never a
// reinterpreted stack.
template <typename... Parameters, typename... Arguments>
[[nodiscard]] cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                                 cudaStream_t stream, Arguments... arguments) {
  constexpr size_t kUnasked = 48 << 10;  // more a kernel must ask for
  if (shared_bytes > kUnasked &&
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)) != cudaSuccess)
    return cudaGetLastError();  // cleared: the next launch must not report it
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
  return cudaGetLastError();
}

// The shared memory that the launch asked for, aligned to 16 bytes.
template <typename T> __device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char fastcnn_dynamic_shared[];
  return reinterpret_cast<T*>(fastcnn_dynamic_shared);
}

}  // namespace fastcnn
#endif

namespace fastcnn {

// The grid that gives `per_block` elements to a block; count > 0.
inline dim3 blocks_for(int64_t count, int64_t per_block) { return dim3(unsigned((count + per_block - 1) / per_block)); }

// Whether vectors of Bytes may be loaded at this address; a tensor that starts inside a storage need not be.
template <int kBytes>
inline bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % kBytes == 0;
}

}  // namespace fastcnn
