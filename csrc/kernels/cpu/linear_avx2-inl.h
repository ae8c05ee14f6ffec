// The body of each kernel of the AVX2 tiers, by format and types.
#pragma once

#include "kernels/cpu/a8_avx2-inl.h"
#include "kernels/cpu/csr_avx2-inl.h"
#include "kernels/cpu/define-inl.h"
#include "kernels/cpu/float_avx2-inl.h"

namespace gossamer {
namespace GOSSAMER_NS {

template <Layout kLayout, ValueType kType, ActivationType kActivation>
inline void linear(const LinearArgs& a) {
  if constexpr (kActivation == ActivationType::kA8)
    a8_linear<kLayout, kType>(a);
  else
    float_linear<kLayout, kType, kActivation>(a);
}

// N:4 has as many values in every word; other patterns count them. Many tokens gain more from codes that are expanded
// once than from pairs, whose inputs are shuffled for every token; the sums are the same.
template <ValueType kType, ActivationType kActivation>
inline void nm_linear(const LinearArgs& a) {
  if (a.weight.m != 4) return linear<Layout::kMasked, kType, kActivation>(a);
  if constexpr (kActivation == ActivationType::kA8) {
    if (a.weight.n == 2 && (kType == ValueType::kInt8 || a.x.tokens <= 8))
      return linear<Layout::kPairs, kType, kActivation>(a);
  }
  linear<Layout::kFixed, kType, kActivation>(a);
}

template <Format kFormat, ValueType kType, ActivationType kActivation>
inline void run(const LinearArgs& a) {
  if constexpr (kFormat == Format::kCsr)
    csr_linear<kType, kActivation>(a);
  else if constexpr (kFormat == Format::kNm)
    nm_linear<kType, kActivation>(a);
  else
    linear<kFormat == Format::kDense ? Layout::kDense : Layout::kMasked, kType, kActivation>(a);
}

}  // namespace GOSSAMER_NS
}  // namespace gossamer
