// The attentions of caches of bf16 and of 8-bit codes by tiles.
#define GOSSAMER_NS amx
#include "kernels/cpu/attend_code_tiles-inl.h"

namespace gossamer {
namespace GOSSAMER_NS {

extern const KvKernels kKvBf16Kernels, kKvInt8Kernels;
const KvKernels kKvBf16Kernels = tile_kernels();
const KvKernels kKvInt8Kernels = code_tile_kernels();

}  // namespace GOSSAMER_NS
}  // namespace gossamer
