#include "kernels/reads.h"

#include "common/cpu_info.h"

namespace gossamer {

namespace scalar {
extern const ReadKernels kReadKernels;
}
#if GOSSAMER_X86
namespace avx2 {
extern const ReadKernels kReadKernels;
}
namespace avx512 {
extern const ReadKernels kReadKernels;
}
#endif

const ReadKernels& read_kernels() {
#if GOSSAMER_X86
  if (builds_on(active_isa(), Isa::kAvx512)) return avx512::kReadKernels;
  if (builds_on(active_isa(), Isa::kAvx2)) return avx2::kReadKernels;
#endif
  return scalar::kReadKernels;
}

}  // namespace gossamer
