#include "kernels/vectors.h"

#include "common/cpu_info.h"

namespace gossamer {

namespace scalar {
extern const VectorKernels kVectorKernels[2];
}
#if GOSSAMER_X86
namespace avx2 {
extern const VectorKernels kVectorKernels[2];
}
namespace avx512 {
extern const VectorKernels kVectorKernels[2];
}
#endif

const VectorKernels& vector_kernels(KvType kv) {
  const int i = static_cast<int>(kv);
#if GOSSAMER_X86
  if (builds_on(active_isa(), Isa::kAvx512)) return avx512::kVectorKernels[i];
  if (builds_on(active_isa(), Isa::kAvx2)) return avx2::kVectorKernels[i];
#endif
  return scalar::kVectorKernels[i];
}

}  // namespace gossamer
