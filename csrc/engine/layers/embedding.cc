#include "engine/layers/embedding.h"

#include "ops/tokens.h"

namespace gossamer {

EmbeddingLayer::EmbeddingLayer(const spec::Transformer& spec, Build& build)
    : weight_(build.weights.take("embed", spec.vocab, spec.hidden)), vectors_(build.vectors), cols_(spec.hidden) {
  if (!spec.embedding.positions) return;
  const auto& learned = std::get<spec::Learned>(*spec.embedding.positions);
  positions_ = build.weights.take("positions", learned.count, spec.hidden);
  offset_ = learned.offset;
}

void EmbeddingLayer::row(std::int32_t token, int position, float* out) const {
  unpack_row(weight_->weight().view(), token, out);
  if (!positions_) return;
  std::vector<float> learned(static_cast<std::size_t>(padded_cols(cols_)));
  unpack_row(positions_->weight().view(), position + offset_, learned.data());
  vectors_.add(out, learned.data(), cols_);
}

void EmbeddingLayer::run(Step& step, Matrix& out) const {
  for_tokens(step.team, step.tokens(), [&](std::int64_t t) {
    const auto i = static_cast<std::size_t>(t);
    row(step.chunk.ids[i], step.chunk.positions[i], out.row(t));
  });
}

}  // namespace gossamer
