#include "kernels/cpu/scalar-inl.h"

namespace gossamer::scalar {

GOSSAMER_SCALAR_KERNELS(nm, kNm)

}  // namespace gossamer::scalar
