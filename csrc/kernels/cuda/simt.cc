// The kernels for GPUs as loops, for tests: the same sources, compiled as C++.
#include "kernels/cuda/attend.cu"
#include "kernels/cuda/bitmap.cu"
#include "kernels/cuda/device.cu"
#include "kernels/cuda/nm24.cu"
#include "kernels/cuda/nonzeros.cu"
#include "kernels/cuda/repack.cu"
#include "kernels/cuda/step.cu"
