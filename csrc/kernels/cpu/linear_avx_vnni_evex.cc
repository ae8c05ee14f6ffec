// The AVX-VNNI kernels of one format, GOSSAMER_FORMAT, with the dot product of AVX-512 VNNI: for tests on processors
// that have this one alone.
#define GOSSAMER_NS avx_vnni_evex
#include "kernels/cpu/linear_avx2-inl.h"

namespace gossamer {
namespace avx_vnni_evex {

GOSSAMER_KERNELS_avx_vnni_evex(GOSSAMER_DEFINE_KERNEL, GOSSAMER_FORMAT)

}  // namespace avx_vnni_evex
}  // namespace gossamer
