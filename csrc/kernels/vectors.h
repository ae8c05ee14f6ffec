// The vector kernels of the active ISA.
#pragma once

#include "kernels/vector_kernels.h"

namespace gossamer {

const VectorKernels& vector_kernels();
const KvKernels& kv_kernels(KvType type);
const char* kv_name(KvType type);

}  // namespace gossamer
