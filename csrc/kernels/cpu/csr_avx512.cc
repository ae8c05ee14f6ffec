#define GOSSAMER_NS avx512
#include "kernels/cpu/csr_avx512-inl.h"

namespace gossamer {
namespace avx512 {

GOSSAMER_DEFINE_PAIR(csr, f32, f32, avx512, (csr_float_linear<ValueType::kF32>(a)))
GOSSAMER_DEFINE_PAIR(csr, bf16, f32, avx512, (csr_float_linear<ValueType::kBf16>(a)))
GOSSAMER_DEFINE_PAIR(csr, f16, f32, avx512, (csr_float_linear<ValueType::kF16>(a)))
GOSSAMER_DEFINE_PAIR(csr, int8, f32, avx512, (csr_float_linear<ValueType::kInt8>(a)))
GOSSAMER_DEFINE_PAIR(csr, int4, f32, avx512, (csr_float_linear<ValueType::kInt4>(a)))

}  // namespace avx512
}  // namespace gossamer
