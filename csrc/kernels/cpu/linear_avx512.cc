// The AVX-512 kernels of one format, GOSSAMER_FORMAT: float activations.
#define GOSSAMER_NS avx512
#include "kernels/cpu/csr_avx512-inl.h"
#include "kernels/cpu/define-inl.h"

namespace gossamer {
namespace avx512 {

template <Format kFormat, ValueType kType, ActivationType kActivation>
inline void run(const LinearArgs& a) {
  if constexpr (kFormat == Format::kCsr)
    csr_float_linear<kType>(a);
  else
    with_layout<kFormat>(a, [&](auto layout) { float_linear<decltype(layout)::value, kType>(a); });
}

GOSSAMER_KERNELS_avx512(GOSSAMER_DEFINE_KERNEL, GOSSAMER_FORMAT)

}  // namespace avx512
}  // namespace gossamer
