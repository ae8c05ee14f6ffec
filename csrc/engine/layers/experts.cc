#include "engine/layers/experts.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "ops/tokens.h"

namespace gossamer {
namespace {

// In place.
void softmax(float* x, int n) {
  const float largest = *std::max_element(x, x + n);
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += x[i] = std::exp(x[i] - largest);
  for (int i = 0; i < n; ++i) x[i] /= sum;
}

}  // namespace

ExpertsLayer::ExpertsLayer(const spec::Experts& spec, const std::string& prefix, Build& build)
    : Mixer(spec.groups(build.hidden), prefix, build),
      spec_(spec),
      activation_(spec.each()),
      rows_(&build.workspace.matrix("experts.rows", build.hidden, spec.chosen)),
      sum_(&build.workspace.matrix("experts.sum", build.hidden)),
      routing_(&build.workspace.matrix("experts.routing", spec.count + (spec.shared ? 1 : 0))) {
  if (spec.shared) shared_.emplace(std::get<spec::Mlp>(*spec.shared));
}

void ExpertsLayer::choose(const float* logits, float* scores, int* experts, float* weights) const {
  const spec::Routing& routing = spec_.routing;
  const int chosen = spec_.chosen;
  std::copy_n(logits, spec_.count, scores);
  if (routing.softmax == spec::Softmax::kAll) softmax(scores, spec_.count);
  // Of equal ones the first; what is not a number is never more than another.
  int found = 0;
  for (int e = 0; e < spec_.count; ++e) {
    int k = found;
    while (k > 0 && scores[e] > scores[experts[k - 1]]) --k;
    if (k == chosen) continue;
    if (found < chosen) ++found;
    for (int i = found - 1; i > k; --i) experts[i] = experts[i - 1];
    experts[k] = e;
  }
  std::sort(experts, experts + chosen);
  for (int k = 0; k < chosen; ++k) weights[k] = scores[experts[k]];
  if (routing.softmax == spec::Softmax::kChosen) softmax(weights, chosen);
  if (routing.normalized) {
    const float sum = std::accumulate(weights, weights + chosen, 0.0F);
    for (int k = 0; k < chosen; ++k) weights[k] /= sum;
  }
  for (int k = 0; k < chosen; ++k) weights[k] *= routing.scale;
}

void ExpertsLayer::route(Step& step) {
  const auto tokens = static_cast<std::size_t>(step.tokens());
  const auto count = static_cast<std::size_t>(spec_.count);
  const auto chosen = static_cast<std::size_t>(spec_.chosen);
  scores_.resize(tokens * count);
  experts_.resize(tokens * chosen);
  weights_.resize(tokens * chosen);
  places_.resize(tokens * chosen);
  const Matrix& logits = router()[0].out();
  for_tokens(step.team, step.tokens(), [&](std::int64_t t) {
    const auto token = static_cast<std::size_t>(t);
    choose(logits.row(t), scores_.data() + token * count, experts_.data() + token * chosen,
           weights_.data() + token * chosen);
  });
  starts_.assign(count + 1, 0);
  for (const int expert : experts_) ++starts_[static_cast<std::size_t>(expert) + 1];
  std::partial_sum(starts_.begin(), starts_.end(), starts_.begin());
  next_ = starts_;
  for (std::size_t i = 0; i < experts_.size(); ++i) places_[i] = next_[static_cast<std::size_t>(experts_[i])]++;
}

float ExpertsLayer::shared_weight(std::int64_t token) {
  return spec_.shared_gate ? 1 / (1 + std::exp(-router()[1].out().row(token)[0])) : 1;
}

void ExpertsLayer::show_routing(Step& step) {
  for (std::int64_t t = 0; t < step.tokens(); ++t) {
    float* row = routing_->row(t);
    std::fill_n(row, spec_.count, -1.0F);
    const auto first = static_cast<std::size_t>(t) * static_cast<std::size_t>(spec_.chosen);
    for (std::size_t i = first; i < first + static_cast<std::size_t>(spec_.chosen); ++i) row[experts_[i]] = weights_[i];
    if (shared_) row[spec_.count] = shared_weight(t);
  }
  step.probe->read("routing", *routing_, {0, 0, step.tokens()});
}

Span ExpertsLayer::span(int expert, bool together) const {
  const int start = starts_[static_cast<std::size_t>(expert)];
  return {together ? 0 : start, start, starts_[static_cast<std::size_t>(expert) + 1] - start, true};
}

Matrix* ExpertsLayer::run(Step& step, const Matrix& x) {
  if (!router().run(step, x)) return nullptr;
  route(step);
  const int tokens = step.tokens();
  const auto chosen = static_cast<std::size_t>(spec_.chosen);
  const std::int64_t rows = static_cast<std::int64_t>(tokens) * spec_.chosen;
  const bool together = tokens == 1;
  const Matrix& read = together ? x : *rows_;
  if (!together) {
    for_tokens(step.team, tokens, [&](std::int64_t t) {
      const int* places = places_.data() + static_cast<std::size_t>(t) * chosen;
      for (std::size_t k = 0; k < chosen; ++k)
        std::memcpy(rows_->row(places[k]), x.row(t), sizeof(float) * static_cast<std::size_t>(x.cols()));
    });
  }
  if (step.probe != nullptr) {
    show_routing(step);
    for (int e = 0; e < spec_.count; ++e) inputs(e).show(step, read, span(e, together));
    if (step.probe->enough()) return nullptr;
  }
  jobs_.clear();
  for (int e = 0; e < spec_.count; ++e) inputs(e).add_jobs(jobs_, step.chunk, span(e, together));
  run_linears(step.team, jobs_, read.rows(together ? 1 : static_cast<int>(rows)), step.inputs);
  for (int e = 0; e < spec_.count; ++e) inputs(e).lift(step, span(e, together));
  // Of all of them: they share the matrices that they write to.
  for_tokens(step.team, rows, [&](std::int64_t row) { activation_.run(inputs(0), row); });

  const Matrix& inner = MlpActivation::inner(inputs(0));
  if (step.probe != nullptr) {
    for (int e = 0; e < spec_.count; ++e) output(e).show(step, inner, span(e, false));
    if (step.probe->enough()) return nullptr;
  }
  jobs_.clear();
  for (int e = 0; e < spec_.count; ++e) output(e).add_jobs(jobs_, step.chunk, span(e, false));
  run_linears(step.team, jobs_, inner.rows(static_cast<int>(rows)), step.inputs);
  for (int e = 0; e < spec_.count; ++e) output(e).lift(step, span(e, false));

  const Matrix* shared = nullptr;
  if (shared_) {
    shared = run_mlp(step, x, inputs(spec_.count), *shared_, output(spec_.count));
    if (shared == nullptr) return nullptr;
  }
  const Matrix& given = output(0)[0].out();
  for_tokens(step.team, tokens, [&](std::int64_t t) {
    float* sum = sum_->row(t);
    std::fill_n(sum, sum_->cols(), 0.0F);
    for (std::size_t i = static_cast<std::size_t>(t) * chosen; i < static_cast<std::size_t>(t + 1) * chosen; ++i)
      step.vectors.add_scaled(sum, given.row(places_[i]), weights_[i], sum_->cols());
    if (shared != nullptr) step.vectors.add_scaled(sum, shared->row(t), shared_weight(t), sum_->cols());
  });
  return sum_;
}

}  // namespace gossamer
