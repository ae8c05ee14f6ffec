#include "kernels/registry.h"

#include "common/error.h"
#include "formats/stored_matrix.h"
#include "kernels/kernel_table.h"

namespace gossamer {

// clang-format off
#define GOSSAMER_DECLARE(isa, format) GOSSAMER_KERNELS_##isa(GOSSAMER_DECLARE_KERNEL, format)
GOSSAMER_KERNEL_TABLE(GOSSAMER_DECLARE)
// clang-format on

namespace table::tier {
constexpr Isa scalar = Isa::kScalar;
constexpr Isa avx2 = Isa::kAvx2;
constexpr Isa avx_vnni = Isa::kAvxVnni;
constexpr Isa avx_vnni_evex = Isa::kAvxVnniEvex;
constexpr Isa avx512 = Isa::kAvx512;
constexpr Isa avx512_vbmi2 = Isa::kAvx512Vbmi2;
constexpr Isa avx512_bf16 = Isa::kAvx512Bf16;
constexpr Isa amx = Isa::kAmx;
constexpr Isa amx_emulated = Isa::kAmxEmulated;
}  // namespace table::tier

namespace {

constexpr const char* kActivationNames[kActivationTypeCount] = {"f32", "bf16", "a8"};

#define GOSSAMER_KERNEL_ENTRY(format_, weight_, activation_, isa_) \
  {#format_ "_linear_" #weight_ "_" #activation_ "__" #isa_,       \
   table::format::format_,                                         \
   table::weight::weight_,                                         \
   table::activation::activation_,                                 \
   table::tier::isa_,                                              \
   isa_::format_##_linear_##weight_##_##activation_##__##isa_},
#define GOSSAMER_ENTRIES(isa, format) GOSSAMER_KERNELS_##isa(GOSSAMER_KERNEL_ENTRY, format)

}  // namespace

const std::vector<KernelEntry>& kernel_registry() {
  // Never destroyed: a daemon thread may be in a call while the process ends.
  static const std::vector<KernelEntry>& entries =
      *new std::vector<KernelEntry>{GOSSAMER_KERNEL_TABLE(GOSSAMER_ENTRIES)};
  return entries;
}

bool usable(const KernelEntry& entry) { return builds_on(active_isa(), entry.isa); }

const KernelEntry& find_kernel(Format format, ValueType weight, ActivationType activation) {
  const KernelEntry* best = nullptr;
  for (const KernelEntry& entry : kernel_registry()) {
    if (entry.format != format || entry.weight != weight || entry.activation != activation || !usable(entry)) continue;
    if (best == nullptr || builds_on(entry.isa, best->isa)) best = &entry;
  }
  require(best != nullptr, "no kernel multiplies ", type_name(weight), " weights with ", activation_name(activation),
          " activations");
  return *best;
}

const KernelEntry& kernel_named(const std::string& name) {
  for (const KernelEntry& entry : kernel_registry())
    if (name == entry.name && has_isa(entry.isa)) return entry;
  throw InvalidArgument(concat("no kernel '", name, "' can run here"));
}

void check_takes(const KernelEntry& entry, const WeightView& weight) {
  require(entry.format == weight.format && entry.weight == weight.type, "kernel ", entry.name, " does not take ",
          format_name(weight.format), " weights of type ", type_name(weight.type));
}

const char* activation_name(ActivationType type) { return kActivationNames[static_cast<int>(type)]; }

ActivationType activation_from_name(const std::string& name) {
  for (int i = 0; i < kActivationTypeCount; ++i)
    if (name == kActivationNames[i]) return static_cast<ActivationType>(i);
  throw InvalidArgument(concat("activations must be f32, bf16 or a8, got '", name, "'"));
}

}  // namespace gossamer
