#include "kernels/cpu/scalar-inl.h"

namespace gossamer::scalar {

GOSSAMER_SCALAR_KERNELS(csr, kCsr)

}  // namespace gossamer::scalar
