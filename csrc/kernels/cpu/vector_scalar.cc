#define GOSSAMER_NS scalar
#include "kernels/cpu/vector-inl.h"
