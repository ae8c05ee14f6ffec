#define GOSSAMER_NS avx512_vbmi2
#include "kernels/cpu/csr_avx512-inl.h"

namespace gossamer {
namespace avx512_vbmi2 {

GOSSAMER_DEFINE_PAIR(csr, int8, a8, avx512_vbmi2, (csr_a8_linear<ValueType::kInt8>(a)))
GOSSAMER_DEFINE_PAIR(csr, int4, a8, avx512_vbmi2, (csr_a8_linear<ValueType::kInt4>(a)))

}  // namespace avx512_vbmi2
}  // namespace gossamer
