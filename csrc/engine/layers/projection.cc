#include "engine/layers/projection.h"

#include <algorithm>
#include <iterator>

#include "common/error.h"

namespace gossamer {
namespace {

// Outputs that parts are added to in turn for all rows, so that their columns of U stay in the L1 cache.
constexpr int kTurnRows = 128;

}  // namespace

Projection::Projection(const spec::Linear& spec, const std::string& prefix, Build& build)
    : weight_(*build.weights.take(prefix + spec.name, spec.rows, spec.cols)),
      vectors_(&build.vectors),
      chosen_(spec.chosen),
      alternatives_(spec.alternatives),
      memory_(spec.memory),
      name_(spec.name),
      full_name_(prefix + spec.name),
      place_(spec.place.empty() ? spec.name : spec.place) {
  parts_ = parts_of(kOwn, build.weights, build.workspace);
  out_ = &build.workspace.matrix(place_, spec.rows, chosen_);
  if (spec.bias) parts_.emplace_back(kOwn, build.weights.take_vector(full_name_ + ".bias", spec.rows));
}

void Projection::add_jobs(std::vector<LinearJob>& jobs, const Chunk& chunk, const Span& span) {
  uses_.clear();
  const auto use = [&](Part& part, const Span& rows, float factor) {
    uses_.push_back({&part, rows.write, rows.write + rows.count, factor});
    part.add_jobs(jobs, rows);
  };
  for (Part& part : parts_) use(part, span, 1);
  if (!adapted_.empty()) {
    for (const Adapted& run : chunk.adapted)
      for (const Choice& choice : *run.mix)
        for (Part& part : adapted_)
          if (part.adapter() == choice.adapter) use(part, {run.begin, run.begin, run.end - run.begin}, choice.weight);
  }
  const Addition* addition = uses_.empty() || lifting() != nullptr ? nullptr : this;
  jobs.push_back({&weight_, out_->row(span.write), out_->stride(), span.read, span.count, addition});
}

Part* Projection::lifting() { return !parts_.empty() && parts_.front().lifts() ? &parts_.front() : nullptr; }

void Projection::lift(Step& step, const Span& span) {
  if (Part* part = lifting()) part->lift(step, span, *this);
}

void Projection::add(int begin, int end) const {
  for (int first = begin; first < end; first += kTurnRows) {
    const int last = std::min(end, first + kTurnRows);
    for (const Use& use : uses_)
      for (int row = use.begin; row < use.end; ++row)
        use.part->add(*vectors_, first, last, row, use.factor, out_->row(row));
  }
}

void Projection::visit(const std::function<void(const std::string&, const Linear&)>& f) const {
  f(full_name_, weight_);
  for (const Part& part : parts_) part.visit(f);
}

void Projection::set_weight(std::shared_ptr<const PackedWeight> weight, const std::string& activations) {
  check_shape(full_name_, weight, rows(), cols());
  weight_ = Linear(std::move(weight), activations);
}

std::vector<Part> Projection::parts_of(int adapter, Weights& weights, Workspace& workspace) const {
  std::vector<Part> parts = take_parts(adapter, full_name_, place_, chosen_, rows(), cols(), weights, workspace);
  require(adapter == kOwn || alternatives_ == 1 || parts.empty(),
          "adapters of experts are not supported: ", full_name_);
  return parts;
}

void Projection::add(std::vector<Part> parts) { std::move(parts.begin(), parts.end(), std::back_inserter(adapted_)); }

void Projection::remove(int adapter) {
  std::erase_if(adapted_, [adapter](const Part& part) { return part.adapter() == adapter; });
}

ProjectionGroup::ProjectionGroup(const spec::Group& spec, const std::string& prefix, Build& build) {
  for (const spec::Linear& linear : spec) projections_.emplace_back(linear, prefix, build);
}

bool ProjectionGroup::run(Step& step, const Matrix& x) {
  const Span all{0, 0, step.tokens()};
  if (step.probe != nullptr) {
    show(step, x, all);
    if (step.probe->enough()) return false;
  }
  jobs_.clear();
  add_jobs(jobs_, step.chunk, all);
  run_linears(step.team, jobs_, x.rows(step.tokens()), step.inputs);
  lift(step, all);
  return true;
}

void ProjectionGroup::show(Step& step, const Matrix& x, const Span& span) const {
  if (step.probe == nullptr) return;
  for (const Projection& projection : projections_) step.probe->read(projection.name(), x, span);
}

void ProjectionGroup::add_jobs(std::vector<LinearJob>& jobs, const Chunk& chunk, const Span& span) {
  if (span.count == 0) return;
  for (Projection& projection : projections_) projection.add_jobs(jobs, chunk, span);
}

void ProjectionGroup::lift(Step& step, const Span& span) {
  if (span.count == 0) return;
  for (Projection& projection : projections_) projection.lift(step, span);
}

}  // namespace gossamer
