#include "kernels/registry.h"

#include "common/error.h"
#include "formats/stored_matrix.h"

namespace gossamer {

// clang-format off
#define GOSSAMER_KERNEL(format, op, weight, activation, isa) \
  namespace isa { void format##_##op##_##weight##_##activation##__##isa(const LinearArgs& args) noexcept; }
#include "kernels/kernel_table.inc"
#undef GOSSAMER_KERNEL
// clang-format on

namespace {

constexpr const char* kActivationNames[kActivationTypeCount] = {"f32", "bf16", "a8"};

Isa tier_of(const std::string& isa) {
  for (int i = 0; i < kIsaCount; ++i)
    if (isa == isa_name(static_cast<Isa>(i))) return static_cast<Isa>(i);
  return Isa::kAvx512Vbmi2;  // avx512_bf16: that tier and a flag of its own
}

std::vector<KernelEntry> build() {
  std::vector<KernelEntry> entries;
#define GOSSAMER_KERNEL(format, op, weight, activation, isa)                                                        \
  entries.push_back({#format "_" #op "_" #weight "_" #activation "__" #isa, format_from_name(#format),              \
                     std::string(#op) == "matvec" ? LinearOp::kMatvec : LinearOp::kMatmul, type_from_name(#weight), \
                     activation_from_name(#activation), tier_of(#isa), std::string(#isa) == "avx512_bf16",          \
                     isa::format##_##op##_##weight##_##activation##__##isa});
#include "kernels/kernel_table.inc"
#undef GOSSAMER_KERNEL
  return entries;
}

}  // namespace

const std::vector<KernelEntry>& kernel_registry() {
  static const std::vector<KernelEntry> entries = build();
  return entries;
}

bool usable(const KernelEntry& entry) { return entry.isa <= active_isa() && (!entry.needs_bf16 || has_avx512_bf16()); }

const KernelEntry& find_kernel(Format format, LinearOp op, ValueType weight, ActivationType activation) {
  const KernelEntry* best = nullptr;
  for (const KernelEntry& entry : kernel_registry()) {
    if (entry.format != format || entry.op != op || entry.weight != weight || entry.activation != activation || !usable(entry)) continue;
    if (best == nullptr || entry.isa >= best->isa) best = &entry;
  }
  require(best != nullptr, "no kernel multiplies ", type_name(weight), " weights with ", activation_name(activation), " activations");
  return *best;
}

const char* activation_name(ActivationType type) { return kActivationNames[static_cast<int>(type)]; }

ActivationType activation_from_name(const std::string& name) {
  for (int i = 0; i < kActivationTypeCount; ++i)
    if (name == kActivationNames[i]) return static_cast<ActivationType>(i);
  throw InvalidArgument(concat("activations must be f32, bf16 or a8, got '", name, "'"));
}

}  // namespace gossamer
