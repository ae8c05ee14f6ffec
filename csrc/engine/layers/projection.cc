#include "engine/layers/projection.h"

#include <algorithm>
#include <iterator>

#include "common/error.h"
#include "ops/tokens.h"

namespace gossamer {
namespace {

// Multiplications that one thread does alone: waking another for fewer costs more than it saves.
constexpr std::int64_t kAloneCost = 16 << 10;

}  // namespace

Projection::Projection(const spec::Linear& spec, const std::string& prefix, Build& build)
    : weight_(*build.weights.take(prefix + spec.name, spec.rows, spec.cols)),
      chosen_(spec.chosen),
      alternatives_(spec.alternatives),
      memory_(spec.memory),
      name_(spec.name),
      full_name_(prefix + spec.name),
      place_(spec.place.empty() ? spec.name : spec.place) {
  parts_ = parts_of(kOwn, build.weights, build.workspace);
  out_ = &build.workspace.matrix(place_, spec.rows, chosen_);
  if (spec.bias) bias_ = build.weights.take_vector(full_name_ + ".bias", spec.rows);
}

void Projection::add_jobs(std::vector<LinearJob>& jobs, const Span& span) {
  jobs.push_back({&weight_, out_->row(span.write), out_->stride(), span.read, span.count});
  for (Part& part : parts_) part.add_jobs(jobs, span);
}

void Projection::add_adapters(std::vector<LinearJob>& jobs, const Chunk& chunk) {
  uses_.clear();
  if (adapted_.empty()) return;
  for (const Adapted& run : chunk.adapted) {
    for (const Choice& choice : *run.mix) {
      for (Part& part : adapted_) {
        if (part.adapter() != choice.adapter) continue;
        uses_.push_back({&part, run.begin, run.end, choice.weight});
        part.add_jobs(jobs, {run.begin, run.begin, run.end - run.begin});
      }
    }
  }
}

void Projection::lift(Step& step, const Span& span) {
  for (Part& part : parts_) part.lift(step, span);
}

void Projection::sum(const VectorKernels& vectors, std::int64_t row) {
  for (const Part& part : parts_) part.add_all(vectors, row, out_->row(row));
  if (!bias_.empty()) vectors.add(out_->row(row), bias_.data(), out_->cols());
}

std::int64_t Projection::cost() const {
  std::int64_t total = 0;
  for (const Use& use : uses_) total += std::int64_t{use.end - use.begin} * use.part->cost() * rows();
  return total;
}

void Projection::adapt(const VectorKernels& vectors, std::int64_t piece) {
  for (const Use& use : uses_)
    for (int t = use.begin; t < use.end; ++t) use.part->add(vectors, piece, t, use.factor, out_->row(t));
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
  for (const spec::Linear& linear : spec) {
    projections_.emplace_back(linear, prefix, build);
    has_sums_ = has_sums_ || projections_.back().has_sums();
  }
}

bool ProjectionGroup::run(Step& step, const Matrix& x) {
  const Span all{0, 0, step.tokens()};
  if (step.probe != nullptr) {
    show(step, x, all);
    if (step.probe->enough()) return false;
  }
  jobs_.clear();
  // Factors, whose pieces are large ones, come first, since what comes last keeps one thread waiting for another.
  const bool adapted = !step.chunk.adapted.empty();
  if (adapted)
    for (Projection& projection : projections_) projection.add_adapters(jobs_, step.chunk);
  add_jobs(jobs_, all);
  run_linears(step.team, jobs_, x.rows(step.tokens()), step.inputs);
  if (has_sums_) {
    lift(step, all);
    for_tokens(step.team, step.tokens(), [&](std::int64_t t) { sum(step.vectors, t); });
  }
  if (adapted) adapt(step);
  return true;
}

void ProjectionGroup::show(Step& step, const Matrix& x, const Span& span) const {
  if (step.probe == nullptr) return;
  for (const Projection& projection : projections_) step.probe->read(projection.name(), x, span);
}

void ProjectionGroup::add_jobs(std::vector<LinearJob>& jobs, const Span& span) {
  if (span.count == 0) return;
  for (Projection& projection : projections_) projection.add_jobs(jobs, span);
}

void ProjectionGroup::lift(Step& step, const Span& span) {
  if (span.count == 0) return;
  for (Projection& projection : projections_) projection.lift(step, span);
}

void ProjectionGroup::sum(const VectorKernels& vectors, std::int64_t row) {
  for (Projection& projection : projections_) projection.sum(vectors, row);
}

void ProjectionGroup::adapt(Step& step) {
  std::int64_t total = 0;
  std::int64_t cost = 0;
  for (const Projection& projection : projections_) {
    total += projection.pieces();
    cost += projection.cost();
  }
  const auto run = [&](std::int64_t begin, std::int64_t end, int) {
    for (Projection& projection : projections_) {
      for (std::int64_t piece = std::max<std::int64_t>(begin, 0); piece < std::min(end, projection.pieces()); ++piece)
        projection.adapt(step.vectors, piece);
      begin -= projection.pieces();
      end -= projection.pieces();
    }
  };
  if (cost <= kAloneCost)
    run(0, total, 0);
  else
    step.team.parallel_for(total, 1, run);
}

}  // namespace gossamer
