// Tokens as rows of the stream.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "engine/layers/mel.h"
#include "engine/layers/norm.h"
#include "engine/layers/positions.h"
#include "engine/spec/transformer.h"
#include "engine/step.h"

namespace gossamer {

class EmbeddingLayer {
 public:
  EmbeddingLayer(const spec::Transformer& spec, Build& build);

  const Linear& weight() const { return *weight_; }
  // Calls f for each weight by its name that rows are multiplied with.
  void visit(const std::function<void(const std::string&, const Linear&)>& f) const;
  // Whether what comes in are frames, and no ids.
  bool reads_frames() const { return mel_ != nullptr; }
  // The rows of a chunk's ids, or frames, and positions.
  void run(Step& step, Matrix& out) const;

 private:
  // What comes once the row has the stream's width.
  void finish(Step& step, std::int64_t token, float* row) const;

  std::unique_ptr<MelLayer> mel_;  // null: there are tokens
  std::unique_ptr<Linear> weight_;
  int hidden_;
  float scale_;
  std::unique_ptr<Linear> project_;            // null: rows have the stream's width
  Matrix* narrow_ = nullptr;                   // rows before it
  std::unique_ptr<Linear> types_;              // null: none
  std::unique_ptr<AddedPositions> positions_;  // null: none
  Matrix* added_ = nullptr;                    // rows of what is added
  std::unique_ptr<NormLayer> norm_;
  const VectorKernels& vectors_;
};

}  // namespace gossamer
