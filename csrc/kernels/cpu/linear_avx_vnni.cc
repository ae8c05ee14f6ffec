// The AVX2 kernels of one format, GOSSAMER_FORMAT, for 8-bit activations with the dot product of AVX-VNNI.
#define GOSSAMER_NS avx_vnni
#include "kernels/cpu/linear_avx2-inl.h"

namespace gossamer {
namespace avx_vnni {

GOSSAMER_KERNELS_avx_vnni(GOSSAMER_DEFINE_KERNEL, GOSSAMER_FORMAT)

}  // namespace avx_vnni
}  // namespace gossamer
