#define GOSSAMER_NS avx2
#include "kernels/cpu/vector-inl.h"
