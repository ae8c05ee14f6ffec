#include "engine/layers/mlp.h"

#include "ops/tokens.h"

namespace gossamer {

MlpLayer::MlpLayer(const spec::Mlp& spec, const std::string& prefix, Build& build)
    : Mixer(spec.groups(build.hidden), prefix, build),
      activation_(build.vectors.activations[static_cast<int>(spec.activation)]),
      gated_(spec.gated) {}

Matrix* MlpLayer::run(Step& step, const Matrix& x) {
  ProjectionGroup& inputs = groups_[0];
  ProjectionGroup& output = groups_[1];
  if (!inputs.run(step, x)) return nullptr;
  Matrix& inner = inputs[0].out();
  if (gated_) {
    const Matrix& up = inputs[1].out();
    for_tokens(step.team, step.tokens(),
               [&](std::int64_t t) { activation_.gated(inner.row(t), up.row(t), inner.cols()); });
  } else {
    for_tokens(step.team, step.tokens(), [&](std::int64_t t) { activation_.plain(inner.row(t), inner.cols()); });
  }
  return output.run(step, inner) ? &output[0].out() : nullptr;
}

}  // namespace gossamer
