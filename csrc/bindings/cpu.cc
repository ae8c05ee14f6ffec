#include <optional>

#include "bindings/bindings.h"
#include "common/cpu_info.h"
#include "kernels/registry.h"

namespace gossamer {
namespace {

const char* compiler() {
#if defined(__clang__)
  return __VERSION__;  // names itself
#elif defined(__GNUC__)
  return "GCC " __VERSION__;
#else
  return "unknown";
#endif
}

}  // namespace

void register_cpu(py::module_& module) {
  module.def(
      "isa", [] { return std::string(isa_name(active_isa())); },
      "The instruction-set tier in use: GOSSAMER_ISA, or the best that this machine has.");
  module.def(
      "isas",
      [] {
        std::vector<std::string> names;
        for (const Isa isa : detected_isas()) names.emplace_back(isa_name(isa));
        return names;
      },
      "The tiers that this machine can run, rising.");
  module.def("compiler", &compiler, "The compiler that this module was built with, and its version.");
  module.def("default_threads", &usable_cores,
             "Threads used when none are asked for: physical cores within the cgroup quota.");
  module.def(
      "kernels",
      [](const std::optional<std::string>& isa) {
        std::vector<std::string> names;
        for (const KernelEntry& entry : kernel_registry())
          if (isa ? has_isa(entry.isa) && *isa == isa_name(entry.isa) : usable(entry)) names.emplace_back(entry.name);
        return names;
      },
      py::arg("isa") = py::none(),
      "Names of the linear kernels that can run under the active tier, or of one tier of this machine.");
}

}  // namespace gossamer
