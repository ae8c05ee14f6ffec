// The kernels of one format, GOSSAMER_FORMAT, for bf16 weights and activations with the BF16 dot product.
#define GOSSAMER_NS avx512_bf16
#include "kernels/cpu/define-inl.h"
#include "kernels/cpu/float_avx512-inl.h"

namespace gossamer {
namespace avx512_bf16 {

template <Format kFormat, ValueType kType, ActivationType kActivation>
inline void run(const LinearArgs& a) {
  with_layout<kFormat>(a, [&](auto layout) { bf16_linear<decltype(layout)::value>(a); });
}

GOSSAMER_KERNELS_avx512_bf16(GOSSAMER_DEFINE_KERNEL, GOSSAMER_FORMAT)

}  // namespace avx512_bf16
}  // namespace gossamer
