#include "kernels/cpu/a8_avx2-inl.h"
#include "kernels/cpu/float_avx2-inl.h"

namespace gossamer {
namespace avx2 {

// N:4 has as many values in every word; other patterns count them. Many tokens gain more from codes that are expanded
// once than from pairs, whose inputs are shuffled for every token; the sums are the same.
template <ValueType kType>
inline void nm_a8_linear(const LinearArgs& a) {
  if (a.weight.m != 4)
    a8_linear<Layout::kMasked, kType>(a);
  else if (a.weight.n != 2 || (kType == ValueType::kInt4 && a.x.tokens > 8))
    a8_linear<Layout::kFixed, kType>(a);
  else
    a8_linear<Layout::kPairs, kType>(a);
}

template <ValueType kType, ActivationType kActivation = ActivationType::kF32>
inline void nm_float_linear(const LinearArgs& a) {
  a.weight.m == 4 ? float_linear<Layout::kFixed, kType, kActivation>(a)
                  : float_linear<Layout::kMasked, kType, kActivation>(a);
}

GOSSAMER_DEFINE_PAIR(nm, f32, f32, (nm_float_linear<ValueType::kF32>(a)))
GOSSAMER_DEFINE_PAIR(nm, bf16, f32, (nm_float_linear<ValueType::kBf16>(a)))
GOSSAMER_DEFINE_PAIR(nm, f16, f32, (nm_float_linear<ValueType::kF16>(a)))
GOSSAMER_DEFINE_PAIR(nm, int8, f32, (nm_float_linear<ValueType::kInt8>(a)))
GOSSAMER_DEFINE_PAIR(nm, int4, f32, (nm_float_linear<ValueType::kInt4>(a)))
GOSSAMER_DEFINE_PAIR(nm, bf16, bf16, (nm_float_linear<ValueType::kBf16, ActivationType::kBf16>(a)))
GOSSAMER_DEFINE_PAIR(nm, f16, bf16, (nm_float_linear<ValueType::kF16, ActivationType::kBf16>(a)))
GOSSAMER_DEFINE_PAIR(nm, int8, a8, (nm_a8_linear<ValueType::kInt8>(a)))
GOSSAMER_DEFINE_PAIR(nm, int4, a8, (nm_a8_linear<ValueType::kInt4>(a)))

}  // namespace avx2
}  // namespace gossamer
