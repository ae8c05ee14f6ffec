// The kernels of one format, GOSSAMER_FORMAT, for 8-bit activations with AMX.
#define GOSSAMER_NS amx
#include "kernels/cpu/a8_amx-inl.h"

namespace gossamer {

// clang-format off
GOSSAMER_KERNELS_avx512_vbmi2(GOSSAMER_DECLARE_KERNEL, GOSSAMER_FORMAT)
    // clang-format on

    namespace amx {
  GOSSAMER_KERNELS_amx(GOSSAMER_DEFINE_AMX_KERNEL, GOSSAMER_FORMAT)

}  // namespace amx
}  // namespace gossamer
