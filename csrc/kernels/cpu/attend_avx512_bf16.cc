// The attention of a cache of bf16 with products of pairs.
#define GOSSAMER_NS avx512_bf16
#include "kernels/cpu/attend-inl.h"

namespace gossamer {
namespace GOSSAMER_NS {

extern const KvKernels kKvBf16Kernels;
const KvKernels kKvBf16Kernels = kv_kernels<KvBf16>();

}  // namespace GOSSAMER_NS
}  // namespace gossamer
