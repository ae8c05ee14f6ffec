// Defines one kernel of the table by the body that its ISA's file calls `run`.
#ifndef GOSSAMER_KERNELS_CPU_DEFINE_INL_H_
#define GOSSAMER_KERNELS_CPU_DEFINE_INL_H_

#include "kernels/kernel_table.h"

#define GOSSAMER_DEFINE_KERNEL(format_, weight_, activation_, isa_)                         \
  void format_##_linear_##weight_##_##activation_##__##isa_(const LinearArgs& a) noexcept { \
    run<table::format::format_, table::weight::weight_, table::activation::activation_>(a); \
  }

#endif
