#include "engine/layers/head.h"

#include <algorithm>

#include "ops/tokens.h"

namespace gossamer {
namespace {

// Logits of a row that one thread takes at least.
constexpr std::int64_t kPiece = 4096;

int head_rows(const spec::Transformer& spec, const Build& build, bool trimmed) {
  const PackedWeight* head = trimmed ? build.weights.find("head") : nullptr;
  return head != nullptr ? std::min(head->view().rows, spec.vocab) : spec.vocab;
}

}  // namespace

HeadLayer::HeadLayer(const spec::Transformer& spec, const EmbeddingLayer& embedding, const NormLayer* norm,
                     Build& build, bool trimmed)
    : norm_(norm),
      scale_(spec.head->scale),
      own_(spec.head->tied && !trimmed
               ? nullptr
               : build.weights.take("head", head_rows(spec, build, trimmed), spec.head->project.value_or(spec.hidden))),
      embedding_(embedding),
      softcap_(spec.head->softcap),
      normed_(build.workspace.matrix("normed", spec.hidden)) {
  if (spec.head->project) {
    project_ = build.weights.take("head_project", *spec.head->project, spec.hidden);
    narrow_ = &build.workspace.matrix("head_project", *spec.head->project);
  }
  if (spec.head->bias) bias_ = build.weights.take_vector("head.bias", width());
}

void HeadLayer::visit(const std::function<void(const std::string&, const Linear&)>& f) const {
  if (project_) f("head_project", *project_);
  f(own_ ? "head" : "embed", weight());
}

void HeadLayer::run(Step& step, ResidualStream& stream, const int* tokens, int rows, float* out) const {
  for_tokens(step.team, rows, [&](std::int64_t i) {
    stream.read_row(tokens[i], norm_, normed_.row(i));
    if (scale_ != 1) step.vectors.scale(normed_.row(i), scale_, normed_.cols());  // fewer values than logits
  });
  Rows x = normed_.rows(rows);
  if (project_) {
    run_linears(step.team, {{project_.get(), narrow_->data(), narrow_->stride()}}, x, step.inputs);
    x = narrow_->rows(rows);
  }
  const Linear& linear = weight();
  run_linears(step.team, {{&linear, out, linear.rows()}}, x, step.inputs);
  if (!bias_.empty() || softcap_) finish(step, rows, out);
}

void HeadLayer::finish(Step& step, int rows, float* out) const {
  const std::int64_t vocab = width();
  const std::int64_t pieces = (vocab + kPiece - 1) / kPiece;
  step.team.parallel_for(rows * pieces, 1, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t piece = begin; piece < end; ++piece) {
      const std::int64_t first = piece % pieces * kPiece;
      const std::int64_t count = std::min(kPiece, vocab - first);
      float* logits = out + piece / pieces * vocab + first;
      if (!bias_.empty()) step.vectors.add(logits, bias_.data() + first, count);
      if (softcap_) step.vectors.softcap(logits, *softcap_, count);
    }
  });
}

}  // namespace gossamer
