#include "engine/layers/embedding.h"

#include "ops/tokens.h"

namespace gossamer {

EmbeddingLayer::EmbeddingLayer(const spec::Transformer& spec, Build& build)
    : weight_(build.weights.take("embed", spec.vocab, spec.hidden)) {}

void EmbeddingLayer::run(Step& step, Matrix& out) const {
  for_tokens(step.team, step.tokens(),
             [&](std::int64_t t) { row(step.chunk.ids[static_cast<std::size_t>(t)], out.row(t)); });
}

}  // namespace gossamer
