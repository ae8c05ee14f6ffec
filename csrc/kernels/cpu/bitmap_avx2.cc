#include "kernels/cpu/a8_avx2-inl.h"
#include "kernels/cpu/float_avx2-inl.h"

namespace gossamer {
namespace avx2 {

GOSSAMER_DEFINE_PAIR(bitmap, f32, f32, (float_linear<Layout::kMasked, ValueType::kF32>(a)))
GOSSAMER_DEFINE_PAIR(bitmap, bf16, f32, (float_linear<Layout::kMasked, ValueType::kBf16>(a)))
GOSSAMER_DEFINE_PAIR(bitmap, f16, f32, (float_linear<Layout::kMasked, ValueType::kF16>(a)))
GOSSAMER_DEFINE_PAIR(bitmap, int8, f32, (float_linear<Layout::kMasked, ValueType::kInt8>(a)))
GOSSAMER_DEFINE_PAIR(bitmap, int4, f32, (float_linear<Layout::kMasked, ValueType::kInt4>(a)))
GOSSAMER_DEFINE_PAIR(bitmap, bf16, bf16, (float_linear<Layout::kMasked, ValueType::kBf16, ActivationType::kBf16>(a)))
GOSSAMER_DEFINE_PAIR(bitmap, f16, bf16, (float_linear<Layout::kMasked, ValueType::kF16, ActivationType::kBf16>(a)))
GOSSAMER_DEFINE_PAIR(bitmap, int8, a8, (a8_linear<Layout::kMasked, ValueType::kInt8>(a)))
GOSSAMER_DEFINE_PAIR(bitmap, int4, a8, (a8_linear<Layout::kMasked, ValueType::kInt4>(a)))

}  // namespace avx2
}  // namespace gossamer
