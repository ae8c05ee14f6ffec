// Reads of whole cache lines, written once over 64-byte vectors and compiled for each ISA, which cuts them into its own
// registers.
#ifndef GOSSAMER_NS
#error "define GOSSAMER_NS first"
#endif
#include <stdint.h>
#include <string.h>

#include "kernels/read_kernels.h"

#pragma GCC diagnostic ignored "-Wpsabi"  // nothing here crosses a function boundary of another object

namespace gossamer {
namespace GOSSAMER_NS {
namespace {

typedef uint64_t Line __attribute__((vector_size(64)));

constexpr int kLines = kReadStep / 64;
constexpr int kAhead = 4096;  // bytes; the kernels' own distance in their value streams

// Two sums, so that neither loads nor additions wait for one another.
template <bool kPrefetch>
inline __attribute__((always_inline)) uint64_t read(const uint8_t* data, int64_t bytes) {
  Line even = {};
  Line odd = {};
  for (const uint8_t* end = data + bytes; data != end; data += kReadStep) {
#pragma GCC unroll 8
    for (int i = 0; i < kLines; ++i) {
      if (kPrefetch) __builtin_prefetch(data + kAhead + 64 * i);
      Line line;
      memcpy(&line, data + 64 * i, sizeof line);
      if (i % 2 == 0)
        even ^= line;
      else
        odd ^= line;
    }
  }
  even ^= odd;
  uint64_t all = 0;
  for (int i = 0; i < 8; ++i) all ^= even[i];
  return all;
}

uint64_t read_plain(const uint8_t* data, int64_t bytes) noexcept { return read<false>(data, bytes); }
uint64_t read_prefetched(const uint8_t* data, int64_t bytes) noexcept { return read<true>(data, bytes); }

}  // namespace

extern const ReadKernels kReadKernels;
const ReadKernels kReadKernels = {read_plain, read_prefetched};

}  // namespace GOSSAMER_NS
}  // namespace gossamer
