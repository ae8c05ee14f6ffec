// Rows of the stream as logits.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/layers/embedding.h"
#include "engine/layers/norm.h"
#include "engine/stream.h"

namespace gossamer {

class HeadLayer {
 public:
  // The embedding, and the norm that is before the head, outlive this.
  // `trimmed`: "head" is there even where the description has it tied, and has the rows of the first tokens alone.
  HeadLayer(const spec::Transformer& spec, const EmbeddingLayer& embedding, const NormLayer* norm, Build& build,
            bool trimmed);

  // Logits of a row.
  int width() const { return weight().rows(); }

  // Calls f for each weight by its name, in the order of the computation.
  void visit(const std::function<void(const std::string&, const Linear&)>& f) const;
  // Logits [rows][width] of some tokens; the stream is of no use afterwards.
  void run(Step& step, ResidualStream& stream, const int* tokens, int rows, float* out) const;

 private:
  const Linear& weight() const { return own_ ? *own_ : embedding_.weight(); }
  void finish(Step& step, int rows, float* out) const;

  const NormLayer* norm_;  // null: none
  float scale_;
  std::unique_ptr<Linear> project_;  // null: the stream has the width of the weight
  Matrix* narrow_ = nullptr;         // rows behind it
  std::unique_ptr<Linear> own_;      // null when tied
  const EmbeddingLayer& embedding_;
  std::vector<float> bias_;  // empty: none
  std::optional<float> softcap_;
  Matrix& normed_;
};

}  // namespace gossamer
