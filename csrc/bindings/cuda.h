// What the files of the module for GPUs share.
#pragma once

#include <string>

#include "bindings/bindings.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/launch.h"

namespace gossamer::cuda {

using Address = std::uintptr_t;

inline void check(int status, const char* what) {
  if (status != 0) throw std::runtime_error(concat("CUDA: ", what, ": ", error_text(status)));
}

template <class T>
T* pointer(Address address, const char* what) {
  require(address != 0, what, " must not be null");
  return reinterpret_cast<T*>(address);
}

inline HalfType half_from_name(const std::string& name) {
  require(name == "f16" || name == "bf16", "type must be f16 or bf16, got '", name, "'");
  return name == "f16" ? HalfType::kF16 : HalfType::kBf16;
}

// Runs a launcher with its device current.
template <class Launch>
inline void run_on(int device, const char* what, const Launch& launch) {
  const WithoutGil released;
  const DeviceGuard guard(device);
  check(guard.status(), what);
  check(launch(), what);
}

void register_cuda_steps(py::module_& module);

}  // namespace gossamer::cuda
