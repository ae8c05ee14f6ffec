#include "engine/layers/projection.h"

#include "ops/tokens.h"

namespace gossamer {

Projection::Projection(const spec::Linear& spec, const std::string& prefix, Build& build)
    : name_(spec.name),
      full_name_(prefix + spec.name),
      weight_(build.weights.take(full_name_, spec.rows, spec.cols)),
      out_(&build.workspace.matrix(spec.name, spec.rows)) {
  if (const PackedWeight* u = build.weights.find(full_name_ + ".low_rank_u")) {
    const int rank = u->view().cols;
    u_ = build.weights.take(full_name_ + ".low_rank_u", spec.rows, rank);
    v_ = build.weights.take(full_name_ + ".low_rank_v", rank, spec.cols);
    inner_ = &build.workspace.matrix(spec.name + ".inner", rank);
    lifted_ = &build.workspace.matrix(spec.name + ".lifted", spec.rows);
  }
  if (spec.bias) bias_ = build.weights.take_vector(full_name_ + ".bias", spec.rows);
}

void Projection::add_jobs(std::vector<LinearJob>& jobs) {
  jobs.push_back({weight_.get(), out_->data(), out_->stride()});
  if (v_) jobs.push_back({v_.get(), inner_->data(), inner_->stride()});
}

void Projection::lift(Step& step) {
  if (!u_) return;
  run_linears(step.team, {{u_.get(), lifted_->data(), lifted_->stride()}}, inner_->rows(step.tokens()), step.inputs);
}

void Projection::sum(const VectorKernels& vectors, std::int64_t token) {
  if (u_) vectors.add(out_->row(token), lifted_->row(token), out_->cols());
  if (!bias_.empty()) vectors.add(out_->row(token), bias_.data(), out_->cols());
}

void Projection::visit(const std::function<void(const std::string&, const Linear&)>& f) const {
  f(full_name_, *weight_);
  if (!u_) return;
  f(full_name_ + ".low_rank_u", *u_);
  f(full_name_ + ".low_rank_v", *v_);
}

void Projection::set_weight(std::shared_ptr<const PackedWeight> weight, const std::string& activations) {
  check_shape(full_name_, weight, weight_->rows(), weight_->cols());
  weight_ = std::make_unique<Linear>(std::move(weight), activations);
}

ProjectionGroup::ProjectionGroup(const spec::Group& spec, const std::string& prefix, Build& build) {
  for (const spec::Linear& linear : spec) {
    projections_.emplace_back(linear, prefix, build);
    has_sums_ = has_sums_ || projections_.back().has_sums();
  }
}

bool ProjectionGroup::run(Step& step, const Matrix& x) {
  if (step.probe != nullptr) {
    for (const Projection& projection : projections_) step.probe->read(projection.name(), x, step.tokens());
    if (step.probe->enough()) return false;
  }
  jobs_.clear();
  for (Projection& projection : projections_) projection.add_jobs(jobs_);
  run_linears(step.team, jobs_, x.rows(step.tokens()), step.inputs);
  if (!has_sums_) return true;
  for (Projection& projection : projections_) projection.lift(step);
  for_tokens(step.team, step.tokens(), [&](std::int64_t t) {
    for (Projection& projection : projections_) projection.sum(step.vectors, t);
  });
  return true;
}

}  // namespace gossamer
