// GPUs, as far as launching needs them. Every int that is returned is a cudaError_t; 0 is success. In the loop build
// there are none, and the processor goes by the number kNoDevice.
#pragma once

#include <stdint.h>

namespace gossamer::cuda {

constexpr int kNoDevice = -1;

struct DeviceFacts {
  char name[256];
  int major, minor;  // compute capability
  int multiprocessors;
  int64_t memory;  // bytes
  int64_t l2;      // bytes
};

int count_devices(int* count);
int describe_device(int device, DeviceFacts* facts);

// What an error means, and clears it where a later call would report it again.
const char* error_text(int status);

// Makes a device current for its lifetime, and the one before current again.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  int status() const { return status_; }

 private:
  int before_ = kNoDevice;
  int status_ = 0;
};

}  // namespace gossamer::cuda
