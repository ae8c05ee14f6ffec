#define GOSSAMER_NS avx512
#include "kernels/cpu/float_avx512-inl.h"

namespace gossamer {
namespace avx512 {

GOSSAMER_DEFINE_PAIR(bitmap, f32, f32, avx512, (float_linear<Layout::kMasked, ValueType::kF32>(a)))
GOSSAMER_DEFINE_PAIR(bitmap, bf16, f32, avx512, (float_linear<Layout::kMasked, ValueType::kBf16>(a)))
GOSSAMER_DEFINE_PAIR(bitmap, f16, f32, avx512, (float_linear<Layout::kMasked, ValueType::kF16>(a)))
GOSSAMER_DEFINE_PAIR(bitmap, int8, f32, avx512, (float_linear<Layout::kMasked, ValueType::kInt8>(a)))
GOSSAMER_DEFINE_PAIR(bitmap, int4, f32, avx512, (float_linear<Layout::kMasked, ValueType::kInt4>(a)))

}  // namespace avx512
}  // namespace gossamer
