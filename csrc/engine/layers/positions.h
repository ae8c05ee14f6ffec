// What positions add to the rows of the embedding.
#pragma once

#include <memory>

#include "engine/spec/transformer.h"
#include "engine/step.h"

namespace gossamer {

class AddedPositions {
 public:
  virtual ~AddedPositions() = default;

  // What is added at a position; there is room for it.
  virtual const float* row(int position, float* room) const = 0;
};

// Null where nothing is added.
std::unique_ptr<AddedPositions> make_positions(const spec::Transformer& spec, Build& build);

}  // namespace gossamer
