#include "engine/layers/embedding.h"

#include <cmath>

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
  if (!spec.embedding.positions) {
    if (types_) added_ = &build.workspace.matrix("positions", spec.hidden);
    return;
  }
  added_ = &build.workspace.matrix("positions", spec.hidden);
  if (const auto* learned = std::get_if<spec::Learned>(&*spec.embedding.positions)) {
    positions_ = build.weights.take("positions", learned->count, spec.hidden);
    offset_ = learned->offset;
  } else {
    make_sinusoids(std::get<spec::Sinusoids>(*spec.embedding.positions), spec.context);
  }
}

void EmbeddingLayer::make_sinusoids(const spec::Sinusoids& spec, int context) {
  const std::size_t half = spec.frequencies.size();
  sinusoids_.resize(static_cast<std::size_t>(context) * 2 * half);
  float* row = sinusoids_.data();
  for (int position = 0; position < context; ++position, row += 2 * half) {
    for (std::size_t j = 0; j < half; ++j) {
      const float angle = static_cast<float>(position + spec.offset) * spec.frequencies[j];
      row[j] = std::sin(angle);
      row[half + j] = std::cos(angle);
    }
  }
}

void EmbeddingLayer::visit(const std::function<void(const std::string&, const Linear&)>& f) const {
  if (project_) f("embed_project", *project_);
}

void EmbeddingLayer::finish(Step& step, std::int64_t token, float* row) const {
  const int position = step.chunk.positions[static_cast<std::size_t>(token)];
  const auto add = [&](const Linear& table, int index) {
    float* added = added_->row(token);
    unpack_row(table.weight().view(), index, added);
    vectors_.add(row, added, hidden_);
  };
  if (types_) add(*types_, step.chunk.types.empty() ? 0 : step.chunk.types[static_cast<std::size_t>(token)]);
  if (positions_) add(*positions_, position + offset_);
  if (!sinusoids_.empty()) vectors_.add(row, sinusoids_.data() + std::int64_t{position} * hidden_, hidden_);
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
