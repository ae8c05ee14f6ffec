// All linear kernels, and the best one for a weight on this machine.
#pragma once

#include <string>
#include <vector>

#include "common/cpu_info.h"
#include "kernels/linear_args.h"

namespace gossamer {

enum class LinearOp : std::uint8_t { kMatvec, kMatmul };

struct KernelEntry {
  const char* name;  // <format>_<op>_<weight>_<activation>__<isa>
  Format format;
  LinearOp op;
  ValueType weight;
  ActivationType activation;
  Isa isa;
  bool needs_bf16;  // the AVX-512 BF16 dot product
  LinearKernel run;
};

const std::vector<KernelEntry>& kernel_registry();

// Whether this machine can run the kernel under the active tier.
bool usable(const KernelEntry& entry);

// The usable kernel of the highest tier. Every combination of section "Kernels" of the design has a scalar one; others
// throw InvalidArgument.
const KernelEntry& find_kernel(Format format, LinearOp op, ValueType weight, ActivationType activation);

const char* activation_name(ActivationType type);
ActivationType activation_from_name(const std::string& name);  // throws InvalidArgument

}  // namespace gossamer
