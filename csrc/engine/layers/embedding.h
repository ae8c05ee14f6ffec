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
  void row(std::int32_t token, float* out) const { unpack_row(weight_->weight().view(), token, out); }
  void run(Step& step, Matrix& out) const;

 private:
  std::unique_ptr<Linear> weight_;
};

}  // namespace gossamer
