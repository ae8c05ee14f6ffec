// All linear kernels, and the best one for a weight on this machine.
#pragma once

#include <string>
#include <vector>

#include "common/cpu_info.h"
#include "kernels/linear_args.h"

namespace gossamer {

struct KernelEntry {
  const char* name;  // <format>_linear_<weight>_<activation>__<isa>
  Format format;
  ValueType weight;
  ActivationType activation;
  Isa isa;
  LinearKernel run;
};

const std::vector<KernelEntry>& kernel_registry();

// Whether the kernel belongs to the active tier or one that it builds on.
bool usable(const KernelEntry& entry);

// The usable kernel of the highest tier. Throws InvalidArgument for types that no kernel multiplies.
const KernelEntry& find_kernel(Format format, ValueType weight, ActivationType activation);

// The kernel of that name, of any tier that this machine has; throws InvalidArgument where there is none.
const KernelEntry& kernel_named(const std::string& name);

// Throws InvalidArgument where the kernel does not take the weight.
void check_takes(const KernelEntry& entry, const WeightView& weight);

const char* activation_name(ActivationType type);
ActivationType activation_from_name(const std::string& name);  // throws InvalidArgument

}  // namespace gossamer
