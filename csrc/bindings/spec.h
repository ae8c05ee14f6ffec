// Descriptions as Python's dictionaries have them.
#pragma once

#include "bindings/bindings.h"
#include "engine/spec/transformer.h"

namespace gossamer {

// What gossamer.arch.spec.Transformer.to_dict returns. Throws InvalidArgument naming a field that is missing, unknown,
// or of the wrong type; ranges are for spec::validate.
spec::Transformer to_spec(const py::dict& values);

}  // namespace gossamer
