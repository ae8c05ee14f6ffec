#include "engine/layers/mlp.h"

#include "ops/tokens.h"

namespace gossamer {

MlpLayer::MlpLayer(const spec::Mlp& spec, const std::string& prefix, Build& build)
    : Mixer(spec.groups(build.hidden), prefix, build), activation_(spec) {}

Matrix* MlpLayer::run(Step& step, const Matrix& x) { return run_mlp(step, x, groups_[0], activation_, groups_[1]); }

Matrix* run_mlp(Step& step, const Matrix& x, ProjectionGroup& inputs, const MlpActivation& activation,
                ProjectionGroup& output) {
  if (!inputs.run(step, x)) return nullptr;
  for_tokens(step.team, step.tokens(), [&](std::int64_t t) { activation.run(inputs, t); });
  return output.run(step, MlpActivation::inner(inputs)) ? &output[0].out() : nullptr;
}

}  // namespace gossamer
