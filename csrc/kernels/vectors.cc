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
namespace avx512_bf16 {
extern const KvKernels kKvBf16Kernels;
}
namespace amx {
extern const KvKernels kKvBf16Kernels, kKvInt8Kernels;
}
#if GOSSAMER_EMULATED_TILES
namespace amx_emulated {
extern const KvKernels kKvBf16Kernels, kKvInt8Kernels;
}
#endif
namespace avx512_vbmi2 {
extern const KvKernels kKvInt8Kernels;
}
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
  if (active_isa() == Isa::kAmx) {
    if (type == KvType::kBf16) return amx::kKvBf16Kernels;
    if (type == KvType::kInt8) return amx::kKvInt8Kernels;
  }
#if GOSSAMER_EMULATED_TILES
  if (active_isa() == Isa::kAmxEmulated) {
    if (type == KvType::kBf16) return amx_emulated::kKvBf16Kernels;
    if (type == KvType::kInt8) return amx_emulated::kKvInt8Kernels;
  }
#endif
  if (type == KvType::kBf16 && builds_on(active_isa(), Isa::kAvx512Bf16)) return avx512_bf16::kKvBf16Kernels;
  if (type == KvType::kInt8 && builds_on(active_isa(), Isa::kAvx512Vbmi2)) return avx512_vbmi2::kKvInt8Kernels;
  if (builds_on(active_isa(), Isa::kAvx512)) return avx512::kKvKernels[i];
  if (builds_on(active_isa(), Isa::kAvx2)) return avx2::kKvKernels[i];
#endif
  return scalar::kKvKernels[i];
}

const char* kv_name(KvType type) {
  static constexpr const char* kNames[kKvTypeCount] = {"f32", "f16", "bf16", "int8"};
  return kNames[static_cast<int>(type)];
}

}  // namespace gossamer
