// The AVX2 kernels of one format, GOSSAMER_FORMAT.
#define GOSSAMER_NS avx2
#include "kernels/cpu/linear_avx2-inl.h"

namespace gossamer {
namespace avx2 {

GOSSAMER_KERNELS_avx2(GOSSAMER_DEFINE_KERNEL, GOSSAMER_FORMAT)

}  // namespace avx2
}  // namespace gossamer
