#define GOSSAMER_NS avx512_bf16
#include "kernels/cpu/float_avx512-inl.h"

namespace gossamer {
namespace avx512_bf16 {

GOSSAMER_DEFINE_PAIR(dense, bf16, bf16, avx512_bf16, (bf16_linear<Layout::kDense>(a)))

}  // namespace avx512_bf16
}  // namespace gossamer
