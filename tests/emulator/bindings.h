// SPDX-License-Identifier: Apache-2.0
// What every module of emulated kernels offers to Python beside its kernels: the thread order and the traffic counters.
// Tensors come as addresses (Tensor.data_ptr()).
#pragma once

#include "simt.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "../../csrc/common/dispatch.h"

namespace fastcnn {

// `dtype` as str(tensor.dtype) writes it.
template <typename F> void dispatch_named(const std::string& dtype, F&& f) {
  if (dtype == "torch.float32") return f(TypeTag<float>{});
  if (dtype == "torch.float16") return f(TypeTag<Half>{});
  if (dtype == "torch.bfloat16") return f(TypeTag<BFloat16>{});
  if (dtype == "torch.float64") return f(TypeTag<double>{});
  throw std::invalid_argument("no kernel for " + dtype);
}

template <typename T> T* at(uintptr_t address) { return reinterpret_cast<T*>(address); }

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw simt::Error("the launch is refused with CUDA error " + std::to_string(int(error)));
}

inline void bind_emulator(pybind11::module_& m) {
  m.def("set_order",
        [](int order, uint64_t seed) { simt::grid().order = simt::Order(order), simt::grid().seed = seed; });
  m.def("start_traffic", [](const std::vector<std::tuple<std::string, uintptr_t, size_t>>& buffers) {
    simt::recorder().start(buffers);
  });
  m.def("stop_traffic", [](size_t l2_bytes, size_t blocks_in_flight) {
    simt::recorder().on = false;
    const simt::Traffic traffic = simt::recorder().figures();
    pybind11::dict buffers, result;
    for (const auto& [name, buffer] : traffic.buffers) {
      pybind11::dict one;
      one["requested"] = buffer.requested, one["efficiency"] = buffer.efficiency();
      buffers[name.c_str()] = one;
    }
    result["buffers"] = buffers, result["left_l1"] = traffic.left_l1, result["requests"] = traffic.requests;
    result["dram"] = simt::recorder().dram_bytes(l2_bytes, blocks_in_flight);
    return result;
  });
}

}  // namespace fastcnn
