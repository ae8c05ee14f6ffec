#define GOSSAMER_NS avx512
#include "kernels/cpu/float_avx512-inl.h"

namespace gossamer {
namespace avx512 {

GOSSAMER_DEFINE_PAIR(nm, f32, f32, avx512,
                     (a.weight.m == 4 ? float_linear<Layout::kFixed, ValueType::kF32>(a)
                                      : float_linear<Layout::kMasked, ValueType::kF32>(a)))
GOSSAMER_DEFINE_PAIR(nm, bf16, f32, avx512,
                     (a.weight.m == 4 ? float_linear<Layout::kFixed, ValueType::kBf16>(a)
                                      : float_linear<Layout::kMasked, ValueType::kBf16>(a)))
GOSSAMER_DEFINE_PAIR(nm, f16, f32, avx512,
                     (a.weight.m == 4 ? float_linear<Layout::kFixed, ValueType::kF16>(a)
                                      : float_linear<Layout::kMasked, ValueType::kF16>(a)))
GOSSAMER_DEFINE_PAIR(nm, int8, f32, avx512,
                     (a.weight.m == 4 ? float_linear<Layout::kFixed, ValueType::kInt8>(a)
                                      : float_linear<Layout::kMasked, ValueType::kInt8>(a)))
GOSSAMER_DEFINE_PAIR(nm, int4, f32, avx512,
                     (a.weight.m == 4 ? float_linear<Layout::kFixed, ValueType::kInt4>(a)
                                      : float_linear<Layout::kMasked, ValueType::kInt4>(a)))

}  // namespace avx512
}  // namespace gossamer
