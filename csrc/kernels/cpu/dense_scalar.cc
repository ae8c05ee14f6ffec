#include "kernels/cpu/scalar-inl.h"

namespace gossamer::scalar {

GOSSAMER_SCALAR_KERNELS(dense, kDense)

}  // namespace gossamer::scalar
