#include "kernels/registry.h"

#include <sstream>

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

struct Row {
  const char* name;
  LinearKernel run;
};

#define GOSSAMER_KERNEL(format, op, weight, activation, isa) \
  {#format "_" #op "_" #weight "_" #activation "__" #isa, isa::format##_##op##_##weight##_##activation##__##isa},
constexpr Row kRows[] = {
#include "kernels/kernel_table.inc"
};
#undef GOSSAMER_KERNEL

Isa tier_of(const std::string& isa) {
  for (int i = 0; i < kIsaCount; ++i)
    if (isa == isa_name(static_cast<Isa>(i))) return static_cast<Isa>(i);
  return Isa::kAvx512Vbmi2;  // avx512_bf16: that tier and a flag of its own
}

// Everything about a kernel is in its name: <format>_<op>_<weight>_<activation>__<isa>.
KernelEntry parse(const Row& row) {
  std::istringstream text(row.name);
  std::string format;
  std::string op;
  std::string weight;
  std::string activation;
  std::getline(text, format, '_');
  std::getline(text, op, '_');
  std::getline(text, weight, '_');
  std::getline(text, activation, '_');
  text.ignore();
  std::string isa;
  std::getline(text, isa);
  return {row.name,
          format_from_name(format.c_str()),
          op == "matvec" ? LinearOp::kMatvec : LinearOp::kMatmul,
          type_from_name(weight.c_str()),
          activation_from_name(activation),
          tier_of(isa),
          isa == "avx512_bf16",
          row.run};
}

std::vector<KernelEntry> build() {
  std::vector<KernelEntry> entries;
  for (const Row& row : kRows) entries.push_back(parse(row));
  return entries;
}

}  // namespace

const std::vector<KernelEntry>& kernel_registry() {
  // Never destroyed: a daemon thread may be in a call while the process ends.
  static const std::vector<KernelEntry>& entries = *new std::vector<KernelEntry>(build());
  return entries;
}

bool usable(const KernelEntry& entry) { return entry.isa <= active_isa() && (!entry.needs_bf16 || has_avx512_bf16()); }

const KernelEntry& find_kernel(Format format, LinearOp op, ValueType weight, ActivationType activation) {
  const KernelEntry* best = nullptr;
  for (const KernelEntry& entry : kernel_registry()) {
    if (entry.format != format || entry.op != op || entry.weight != weight || entry.activation != activation ||
        !usable(entry))
      continue;
    if (best == nullptr || entry.isa >= best->isa) best = &entry;
  }
  require(best != nullptr, "no kernel multiplies ", type_name(weight), " weights with ", activation_name(activation),
          " activations");
  return *best;
}

const char* activation_name(ActivationType type) { return kActivationNames[static_cast<int>(type)]; }

ActivationType activation_from_name(const std::string& name) {
  for (int i = 0; i < kActivationTypeCount; ++i)
    if (name == kActivationNames[i]) return static_cast<ActivationType>(i);
  throw InvalidArgument(concat("activations must be f32, bf16 or a8, got '", name, "'"));
}

}  // namespace gossamer
