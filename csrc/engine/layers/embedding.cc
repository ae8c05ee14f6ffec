#include "engine/layers/embedding.h"

#include "ops/tokens.h"

namespace gossamer {

EmbeddingLayer::EmbeddingLayer(const spec::Transformer& spec, Build& build)
    : weight_(build.weights.take("embed", spec.vocab, spec.embedding.project.value_or(spec.hidden))),
      scale_(spec.embedding.scale),
      norm_(make_norm(spec.embedding.norm, "embed_norm", spec.hidden, build)),
      vectors_(build.vectors) {
  if (spec.embedding.project) {
    project_ = build.weights.take("embed_project", spec.hidden, *spec.embedding.project);
    narrow_ = &build.workspace.matrix("embed", *spec.embedding.project);
  }
  if (!spec.embedding.positions) return;
  const auto& learned = std::get<spec::Learned>(*spec.embedding.positions);
  positions_ = build.weights.take("positions", learned.count, spec.hidden);
  learned_ = &build.workspace.matrix("positions", spec.hidden);
  offset_ = learned.offset;
}

void EmbeddingLayer::visit(const std::function<void(const std::string&, const Linear&)>& f) const {
  if (project_) f("embed_project", *project_);
}

void EmbeddingLayer::finish(Step& step, std::int64_t token, float* row) const {
  if (positions_) {
    float* learned = learned_->row(token);
    unpack_row(positions_->weight().view(), step.chunk.positions[static_cast<std::size_t>(token)] + offset_, learned);
    vectors_.add(row, learned, learned_->cols());
  }
  if (norm_) norm_->run(row, row);
}

void EmbeddingLayer::run(Step& step, Matrix& out) const {
  Matrix& rows = project_ ? *narrow_ : out;
  for_tokens(step.team, step.tokens(), [&](std::int64_t t) {
    float* row = rows.row(t);
    unpack_row(weight_->weight().view(), step.chunk.ids[static_cast<std::size_t>(t)], row);
    if (scale_ != 1) vectors_.scale(row, scale_, rows.cols());
    if (!project_) finish(step, t, row);
  });
  if (!project_) return;
  run_linears(step.team, {{project_.get(), out.data(), out.stride()}}, rows.rows(step.tokens()), step.inputs);
  for_tokens(step.team, step.tokens(), [&](std::int64_t t) { finish(step, t, out.row(t)); });
}

}  // namespace gossamer
