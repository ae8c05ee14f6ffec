// The attention of a cache of bf16 by tiles in loops, for tests.
#define GOSSAMER_NS amx_emulated
#include "kernels/cpu/attend_tiles-inl.h"

namespace gossamer {
namespace GOSSAMER_NS {

extern const KvKernels kKvBf16Kernels;
const KvKernels kKvBf16Kernels = tile_kernels();

}  // namespace GOSSAMER_NS
}  // namespace gossamer
