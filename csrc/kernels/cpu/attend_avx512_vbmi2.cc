// The attention of a cache of 8-bit codes with dot products of bytes.
#define GOSSAMER_NS avx512_vbmi2
#include "kernels/cpu/attend_codes-inl.h"

namespace gossamer {
namespace GOSSAMER_NS {

extern const KvKernels kKvInt8Kernels;
const KvKernels kKvInt8Kernels = code_kernels();

}  // namespace GOSSAMER_NS
}  // namespace gossamer
