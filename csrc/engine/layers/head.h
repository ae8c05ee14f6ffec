// Rows of the stream as logits.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/layers/embedding.h"
#include "engine/layers/norm.h"
#include "engine/stream.h"

namespace gossamer {

class HeadLayer {
 public:
  // The embedding outlives this.
  HeadLayer(const spec::Transformer& spec, const EmbeddingLayer& embedding, Build& build);

  // The weight's name and itself.
  std::pair<std::string, const Linear&> weight() const;
  // Logits [rows][vocab] of some tokens; the stream is of no use afterwards.
  void run(Step& step, ResidualStream& stream, const int* tokens, int rows, float* out) const;

 private:
  std::optional<NormLayer> norm_;
  std::unique_ptr<Linear> own_;  // null when tied
  const EmbeddingLayer& embedding_;
  Matrix& normed_;
};

}  // namespace gossamer
