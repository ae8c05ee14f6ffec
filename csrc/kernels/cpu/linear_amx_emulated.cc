// The AMX kernels of one format, GOSSAMER_FORMAT, over tiles in loops: for tests, on processors without AMX, too.
#define GOSSAMER_NS amx_emulated
#include "kernels/cpu/a8_amx-inl.h"

namespace gossamer {

// clang-format off
GOSSAMER_KERNELS_avx512_vbmi2(GOSSAMER_DECLARE_KERNEL, GOSSAMER_FORMAT)
    // clang-format on

    namespace amx_emulated {
  GOSSAMER_KERNELS_amx_emulated(GOSSAMER_DEFINE_AMX_KERNEL, GOSSAMER_FORMAT)

}  // namespace amx_emulated
}  // namespace gossamer
