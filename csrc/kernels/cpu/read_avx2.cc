#define GOSSAMER_NS avx2
#include "kernels/cpu/read-inl.h"
