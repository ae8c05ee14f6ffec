#define GOSSAMER_NS scalar
#include "kernels/cpu/read-inl.h"
