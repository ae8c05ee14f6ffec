#include "engine/layers/embedding.h"

#include "ops/tokens.h"

namespace gossamer {

EmbeddingLayer::EmbeddingLayer(const spec::Transformer& spec, Build& build)
    : mel_(spec.embedding.mel ? std::make_unique<MelLayer>(*spec.embedding.mel, build) : nullptr),
      weight_(mel_ ? nullptr : build.weights.take("embed", spec.vocab, spec.embedding.project.value_or(spec.hidden))),
      hidden_(spec.hidden),
      scale_(spec.embedding.scale),
      norm_(make_norm(spec.embedding.norm, "embed_norm", spec.hidden, build)),
      vectors_(build.vectors) {
  if (spec.embedding.project) {
    project_ = build.weights.take("embed_project", spec.hidden, *spec.embedding.project);
    narrow_ = &build.workspace.matrix("embed", *spec.embedding.project);
  }
  if (spec.embedding.types != 0) types_ = build.weights.take("types", spec.embedding.types, spec.hidden);
  positions_ = make_positions(spec, build);
  if (types_ || positions_) added_ = &build.workspace.matrix("positions", spec.hidden);
}

void EmbeddingLayer::visit(const std::function<void(const std::string&, const Linear&)>& f) const {
  if (project_) f("embed_project", *project_);
}

void EmbeddingLayer::finish(Step& step, std::int64_t token, float* row) const {
  if (types_) {
    const int type = step.chunk.types.empty() ? 0 : step.chunk.types[static_cast<std::size_t>(token)];
    unpack_row(types_->weight().view(), type, added_->row(token));
    vectors_.add(row, added_->row(token), hidden_);
  }
  if (positions_) {
    const int position = step.chunk.positions[static_cast<std::size_t>(token)];
    vectors_.add(row, positions_->row(position, added_->row(token)), hidden_);
  }
  if (norm_) norm_->run(row, row);
}

void EmbeddingLayer::run(Step& step, Matrix& out) const {
  if (mel_) {
    mel_->run(step, out);
    for_tokens(step.team, step.tokens(), [&](std::int64_t t) { finish(step, t, out.row(t)); });
    return;
  }
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
