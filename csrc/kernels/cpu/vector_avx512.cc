#define GOSSAMER_NS avx512
#include "kernels/cpu/vector-inl.h"
