#include "bindings/bindings.h"
#include "gossamer_build.h"

PYBIND11_MODULE(_core, module) {
  module.doc() =
      "gossamer's native core: packed weights, kernels and the decoder. See gossamer for the public interface.";
  module.attr("__version__") = GOSSAMER_VERSION;
  module.attr("__source_hash__") = GOSSAMER_SOURCE_HASH;
  gossamer::register_cpu(module);
  gossamer::register_weight(module);
  gossamer::register_decoder(module);
  gossamer::register_timing(module);
  gossamer::register_tensor(module);
}
