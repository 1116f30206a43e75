// SPDX-License-Identifier: Apache-2.0
// Every CPU kernel file is compiled once per instruction set. Whatever a header defines for kernels lives in an inline namespace named after
// the set, so that the linker can never merge an AVX-512 copy of an inline function into the code that a plain x86-64 machine runs.
#pragma once

#ifndef FASTCNN_ISA
#define FASTCNN_ISA host  // entry functions and nvcc
#endif

#ifdef __CUDACC__
#define FASTCNN_HOST_DEVICE __host__ __device__
#define FASTCNN_INLINE __host__ __device__ __forceinline__
#else
#define FASTCNN_HOST_DEVICE
#define FASTCNN_INLINE inline __attribute__((always_inline))
#endif

// For what picks a kernel: it throws and calls host lambdas, so nvcc must not compile it for the device.
#define FASTCNN_HOST_INLINE inline __attribute__((always_inline))
