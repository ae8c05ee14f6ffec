// Reads of memory at full width, which do nothing with the bytes: what bandwidth is measured with. Plain data.
#ifndef GOSSAMER_KERNELS_READ_KERNELS_H_
#define GOSSAMER_KERNELS_READ_KERNELS_H_

#include <stdint.h>

namespace gossamer {

// Bytes that a read kernel takes at a time.
constexpr int kReadStep = 512;

// Reads [data, data + bytes), 64-byte aligned, a multiple of kReadStep; returns the exclusive or of its 64-bit words.
typedef uint64_t (*ReadKernel)(const uint8_t* data, int64_t bytes) noexcept;

struct ReadKernels {
  ReadKernel plain;
  ReadKernel prefetched;
};

}  // namespace gossamer

#endif
