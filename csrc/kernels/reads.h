// The read kernels of the active ISA.
#pragma once

#include "kernels/read_kernels.h"

namespace gossamer {

const ReadKernels& read_kernels();

}  // namespace gossamer
