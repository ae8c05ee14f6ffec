#define GOSSAMER_NS avx512
#include "kernels/cpu/float_avx512-inl.h"

namespace gossamer {
namespace avx512 {

GOSSAMER_DEFINE_PAIR(dense, f32, f32, avx512, (float_linear<Layout::kDense, ValueType::kF32>(a)))
GOSSAMER_DEFINE_PAIR(dense, bf16, f32, avx512, (float_linear<Layout::kDense, ValueType::kBf16>(a)))
GOSSAMER_DEFINE_PAIR(dense, f16, f32, avx512, (float_linear<Layout::kDense, ValueType::kF16>(a)))
GOSSAMER_DEFINE_PAIR(dense, int8, f32, avx512, (float_linear<Layout::kDense, ValueType::kInt8>(a)))
GOSSAMER_DEFINE_PAIR(dense, int4, f32, avx512, (float_linear<Layout::kDense, ValueType::kInt4>(a)))

}  // namespace avx512
}  // namespace gossamer
