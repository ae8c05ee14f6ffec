#define GOSSAMER_NS avx512_vbmi2
#include "kernels/cpu/a8_avx512-inl.h"

namespace gossamer {
namespace avx512_vbmi2 {

GOSSAMER_DEFINE_PAIR(dense, int8, a8, avx512_vbmi2, (a8_linear<Layout::kDense, ValueType::kInt8>(a)))
GOSSAMER_DEFINE_PAIR(dense, int4, a8, avx512_vbmi2, (a8_linear<Layout::kDense, ValueType::kInt4>(a)))

}  // namespace avx512_vbmi2
}  // namespace gossamer
