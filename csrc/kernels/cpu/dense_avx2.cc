#include "kernels/cpu/a8_avx2-inl.h"
#include "kernels/cpu/float_avx2-inl.h"

namespace gossamer {
namespace avx2 {

GOSSAMER_DEFINE_PAIR(dense, f32, f32, (float_linear<Layout::kDense, ValueType::kF32>(a)))
GOSSAMER_DEFINE_PAIR(dense, bf16, f32, (float_linear<Layout::kDense, ValueType::kBf16>(a)))
GOSSAMER_DEFINE_PAIR(dense, f16, f32, (float_linear<Layout::kDense, ValueType::kF16>(a)))
GOSSAMER_DEFINE_PAIR(dense, int8, f32, (float_linear<Layout::kDense, ValueType::kInt8>(a)))
GOSSAMER_DEFINE_PAIR(dense, int4, f32, (float_linear<Layout::kDense, ValueType::kInt4>(a)))
GOSSAMER_DEFINE_PAIR(dense, bf16, bf16, (float_linear<Layout::kDense, ValueType::kBf16, ActivationType::kBf16>(a)))
GOSSAMER_DEFINE_PAIR(dense, f16, bf16, (float_linear<Layout::kDense, ValueType::kF16, ActivationType::kBf16>(a)))
GOSSAMER_DEFINE_PAIR(dense, int8, a8, (a8_linear<Layout::kDense, ValueType::kInt8>(a)))
GOSSAMER_DEFINE_PAIR(dense, int4, a8, (a8_linear<Layout::kDense, ValueType::kInt4>(a)))

}  // namespace avx2
}  // namespace gossamer
