// The kernels of one format, GOSSAMER_FORMAT, for 8-bit activations with AVX-512 VBMI2 and VNNI.
#define GOSSAMER_NS avx512_vbmi2
#include "kernels/cpu/a8_avx512-inl.h"
#include "kernels/cpu/csr_avx512-inl.h"
#include "kernels/cpu/define-inl.h"

namespace gossamer {
namespace avx512_vbmi2 {

template <Format kFormat, ValueType kType, ActivationType kActivation>
inline void run(const LinearArgs& a) {
  if constexpr (kFormat == Format::kCsr)
    csr_a8_linear<kType>(a);
  else
    with_layout<kFormat>(a, [&](auto layout) { a8_linear<decltype(layout)::value, kType>(a); });
}

GOSSAMER_KERNELS_avx512_vbmi2(GOSSAMER_DEFINE_KERNEL, GOSSAMER_FORMAT)

}  // namespace avx512_vbmi2
}  // namespace gossamer
