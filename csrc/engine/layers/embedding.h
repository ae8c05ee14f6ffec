// Tokens as rows of the stream.
#pragma once

#include <memory>

#include "engine/spec.h"
#include "engine/step.h"

namespace gossamer {

class EmbeddingLayer {
 public:
  EmbeddingLayer(const spec::Transformer& spec, Build& build);

  const Linear& weight() const { return *weight_; }
  void row(std::int32_t token, int position, float* out) const;
  void run(Step& step, Matrix& out) const;

 private:
  std::unique_ptr<Linear> weight_;
  std::unique_ptr<Linear> positions_;  // null: none
  int offset_ = 0;                     // the row of position 0
  const VectorKernels& vectors_;
  int cols_;
};

}  // namespace gossamer
