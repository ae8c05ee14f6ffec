// Every linear kernel, once: its definition, declaration and registry row come from these lines, and tests and benches
// ask the registry. Macros alone, for files that are compiled for an ISA, too.
//
// A kernel is gossamer::<isa>::<format>_linear_<weight>_<activation>__<isa>, which takes any number of tokens.
// GOSSAMER_KERNELS_<isa>(KERNEL, format) stands for KERNEL(format, weight, activation, isa) of each pair of types that
// the ISA has kernels for, and GOSSAMER_KERNEL_TABLE(OBJECT) for OBJECT(isa, format) of each object: one a format, so
// that compilers may work side by side.
#ifndef GOSSAMER_KERNELS_KERNEL_TABLE_H_
#define GOSSAMER_KERNELS_KERNEL_TABLE_H_

#include "kernels/linear_args.h"

#define GOSSAMER_FLOAT_KERNELS(KERNEL, format, isa) \
  KERNEL(format, f32, f32, isa)                     \
  KERNEL(format, bf16, f32, isa)                    \
  KERNEL(format, f16, f32, isa)                     \
  KERNEL(format, int8, f32, isa)                    \
  KERNEL(format, int4, f32, isa)

#define GOSSAMER_BF16_KERNELS(KERNEL, format, isa) \
  KERNEL(format, bf16, bf16, isa)                  \
  KERNEL(format, f16, bf16, isa)

#define GOSSAMER_A8_KERNELS(KERNEL, format, isa) \
  KERNEL(format, int8, a8, isa)                  \
  KERNEL(format, int4, a8, isa)

#define GOSSAMER_ALL_KERNELS(KERNEL, format, isa) \
  GOSSAMER_FLOAT_KERNELS(KERNEL, format, isa)     \
  GOSSAMER_BF16_KERNELS(KERNEL, format, isa)      \
  GOSSAMER_A8_KERNELS(KERNEL, format, isa)

#define GOSSAMER_KERNELS_scalar(KERNEL, format) GOSSAMER_ALL_KERNELS(KERNEL, format, scalar)
#define GOSSAMER_KERNELS_avx2(KERNEL, format) GOSSAMER_ALL_KERNELS(KERNEL, format, avx2)
#define GOSSAMER_KERNELS_avx_vnni(KERNEL, format) GOSSAMER_A8_KERNELS(KERNEL, format, avx_vnni)
#define GOSSAMER_KERNELS_avx_vnni_evex(KERNEL, format) GOSSAMER_A8_KERNELS(KERNEL, format, avx_vnni_evex)
#define GOSSAMER_KERNELS_avx512(KERNEL, format) GOSSAMER_FLOAT_KERNELS(KERNEL, format, avx512)
#define GOSSAMER_KERNELS_avx512_vbmi2(KERNEL, format) GOSSAMER_A8_KERNELS(KERNEL, format, avx512_vbmi2)
#define GOSSAMER_KERNELS_amx_emulated(KERNEL, format) GOSSAMER_A8_KERNELS(KERNEL, format, amx_emulated)
#define GOSSAMER_KERNELS_amx(KERNEL, format) GOSSAMER_A8_KERNELS(KERNEL, format, amx)
#define GOSSAMER_KERNELS_avx512_bf16(KERNEL, format) KERNEL(format, bf16, bf16, avx512_bf16)

#define GOSSAMER_TILED_FORMATS(OBJECT, isa) OBJECT(isa, dense) OBJECT(isa, bitmap) OBJECT(isa, nm)
#define GOSSAMER_EVERY_FORMAT(OBJECT, isa) GOSSAMER_TILED_FORMATS(OBJECT, isa) OBJECT(isa, csr)

#if GOSSAMER_EMULATED_TILES
#define GOSSAMER_EMULATED_TABLE(OBJECT) GOSSAMER_TILED_FORMATS(OBJECT, amx_emulated)
#else
#define GOSSAMER_EMULATED_TABLE(OBJECT)
#endif

#if GOSSAMER_EVEX_VNNI
#define GOSSAMER_EVEX_TABLE(OBJECT) GOSSAMER_EVERY_FORMAT(OBJECT, avx_vnni_evex)
#else
#define GOSSAMER_EVEX_TABLE(OBJECT)
#endif

#if GOSSAMER_X86
#define GOSSAMER_KERNEL_TABLE(OBJECT)         \
  GOSSAMER_EVERY_FORMAT(OBJECT, scalar)       \
  GOSSAMER_EVERY_FORMAT(OBJECT, avx2)         \
  GOSSAMER_EVERY_FORMAT(OBJECT, avx_vnni)     \
  GOSSAMER_EVEX_TABLE(OBJECT)                 \
  GOSSAMER_EVERY_FORMAT(OBJECT, avx512)       \
  GOSSAMER_EVERY_FORMAT(OBJECT, avx512_vbmi2) \
  GOSSAMER_TILED_FORMATS(OBJECT, avx512_bf16) \
  GOSSAMER_TILED_FORMATS(OBJECT, amx)         \
  GOSSAMER_EMULATED_TABLE(OBJECT)
#else
#define GOSSAMER_KERNEL_TABLE(OBJECT) GOSSAMER_EVERY_FORMAT(OBJECT, scalar)
#endif

// Declares one kernel.
#define GOSSAMER_DECLARE_KERNEL(format, weight, activation, isa)                          \
  namespace isa {                                                                         \
  void format##_linear_##weight##_##activation##__##isa(const LinearArgs& args) noexcept; \
  }

// What the table's words stand for.
namespace gossamer::table {

namespace format {
constexpr Format dense = Format::kDense;
constexpr Format bitmap = Format::kBitmap;
constexpr Format csr = Format::kCsr;
constexpr Format nm = Format::kNm;
}  // namespace format

namespace weight {
constexpr ValueType f32 = ValueType::kF32;
constexpr ValueType bf16 = ValueType::kBf16;
constexpr ValueType f16 = ValueType::kF16;
constexpr ValueType int8 = ValueType::kInt8;
constexpr ValueType int4 = ValueType::kInt4;
}  // namespace weight

namespace activation {
constexpr ActivationType f32 = ActivationType::kF32;
constexpr ActivationType bf16 = ActivationType::kBf16;
constexpr ActivationType a8 = ActivationType::kA8;
}  // namespace activation

}  // namespace gossamer::table

#endif
