#define GOSSAMER_NS avx512
#include "kernels/cpu/read-inl.h"
