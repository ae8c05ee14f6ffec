#include "engine/layers/head.h"

#include "ops/tokens.h"

namespace gossamer {

HeadLayer::HeadLayer(const spec::Transformer& spec, const EmbeddingLayer& embedding, Build& build)
    : norm_(make_norm(spec.stack.norm, "norm", spec.hidden, build)),
      own_(spec.head.tied ? nullptr : build.weights.take("head", spec.vocab, spec.hidden)),
      embedding_(embedding),
      normed_(build.workspace.matrix("normed", spec.hidden)) {}

std::pair<std::string, const Linear&> HeadLayer::weight() const {
  return own_ ? std::pair<std::string, const Linear&>("head", *own_)
              : std::pair<std::string, const Linear&>("embed", embedding_.weight());
}

void HeadLayer::run(Step& step, ResidualStream& stream, const int* tokens, int rows, float* out) const {
  const Linear& linear = weight().second;
  for_tokens(step.team, rows,
             [&](std::int64_t i) { stream.read_row(tokens[i], norm_ ? &*norm_ : nullptr, normed_.row(i)); });
  run_linears(step.team, {{&linear, out, linear.rows()}}, normed_.rows(rows), step.inputs);
}

}  // namespace gossamer
