#include "kernels/vectors.h"

#include "common/cpu_info.h"

namespace gossamer {

#define GOSSAMER_DECLARE_VECTORS(isa)              \
  namespace isa {                                  \
  extern const VectorKernels kVectorKernels;       \
  extern const KvKernels kKvKernels[kKvTypeCount]; \
  }
GOSSAMER_DECLARE_VECTORS(scalar)
#if GOSSAMER_X86
GOSSAMER_DECLARE_VECTORS(avx2)
GOSSAMER_DECLARE_VECTORS(avx512)
#endif

const VectorKernels& vector_kernels() {
#if GOSSAMER_X86
  if (builds_on(active_isa(), Isa::kAvx512)) return avx512::kVectorKernels;
  if (builds_on(active_isa(), Isa::kAvx2)) return avx2::kVectorKernels;
#endif
  return scalar::kVectorKernels;
}

const KvKernels& kv_kernels(KvType type) {
  const int i = static_cast<int>(type);
#if GOSSAMER_X86
  if (builds_on(active_isa(), Isa::kAvx512)) return avx512::kKvKernels[i];
  if (builds_on(active_isa(), Isa::kAvx2)) return avx2::kKvKernels[i];
#endif
  return scalar::kKvKernels[i];
}

}  // namespace gossamer
