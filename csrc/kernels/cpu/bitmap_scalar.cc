#include "kernels/cpu/scalar-inl.h"

namespace gossamer::scalar {

GOSSAMER_SCALAR_KERNELS(bitmap, kBitmap)

}  // namespace gossamer::scalar
