#include "kernels/cuda/device.h"

#include <string.h>

namespace gossamer::cuda {

#ifdef __CUDACC__

int count_devices(int* count) { return static_cast<int>(cudaGetDeviceCount(count)); }

int describe_device(int device, DeviceFacts* facts) {
  cudaDeviceProp properties;
  const cudaError_t status = cudaGetDeviceProperties(&properties, device);
  if (status != cudaSuccess) return static_cast<int>(status);
  strncpy(facts->name, properties.name, sizeof(facts->name) - 1);
  facts->name[sizeof(facts->name) - 1] = '\0';
  facts->major = properties.major;
  facts->minor = properties.minor;
  facts->multiprocessors = properties.multiProcessorCount;
  facts->memory = static_cast<int64_t>(properties.totalGlobalMem);
  facts->l2 = properties.l2CacheSize;
  return 0;
}

const char* error_text(int status) {
  cudaGetLastError();
  return cudaGetErrorString(static_cast<cudaError_t>(status));
}

DeviceGuard::DeviceGuard(int device) {
  cudaError_t status = cudaGetDevice(&before_);
  if (status == cudaSuccess && before_ != device) status = cudaSetDevice(device);
  status_ = static_cast<int>(status);
}

DeviceGuard::~DeviceGuard() {
  if (before_ != kNoDevice) cudaSetDevice(before_);
}

#else

int count_devices(int* count) {
  *count = 0;
  return 0;
}

int describe_device(int, DeviceFacts*) { return 1; }

const char* error_text(int status) { return status == 0 ? "no error" : "this build runs kernels on the processor"; }

DeviceGuard::DeviceGuard(int device) : status_(device == kNoDevice ? 0 : 1) {}

DeviceGuard::~DeviceGuard() = default;

#endif

}  // namespace gossamer::cuda
