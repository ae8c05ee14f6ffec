// The vector kernels of the active ISA.
#pragma once

#include "kernels/vector_kernels.h"

namespace gossamer {

const VectorKernels& vector_kernels();
const KvKernels& kv_kernels(KvType type);

}  // namespace gossamer
