#define GOSSAMER_NS avx512_vbmi2
#include "kernels/cpu/a8_avx512-inl.h"

namespace gossamer {
namespace avx512_vbmi2 {

GOSSAMER_DEFINE_PAIR(nm, int8, a8, avx512_vbmi2,
                     (a.weight.m == 4 ? a8_linear<Layout::kFixed, ValueType::kInt8>(a)
                                      : a8_linear<Layout::kMasked, ValueType::kInt8>(a)))
GOSSAMER_DEFINE_PAIR(nm, int4, a8, avx512_vbmi2,
                     (a.weight.m == 4 ? a8_linear<Layout::kFixed, ValueType::kInt4>(a)
                                      : a8_linear<Layout::kMasked, ValueType::kInt4>(a)))

}  // namespace avx512_vbmi2
}  // namespace gossamer
