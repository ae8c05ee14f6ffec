#include "engine/layers/mlp.h"

#include <limits>

#include "ops/tokens.h"

namespace gossamer {

MlpLayer::MlpLayer(const spec::Mlp& spec, const std::string& prefix, Build& build)
    : Mixer(spec.groups(build.hidden), prefix, build),
      activation_(build.vectors.activations[static_cast<int>(spec.activation)]),
      gated_(spec.gated),
      plain_(spec.plain()),
      limit_(spec.limit),
      alpha_(spec.alpha),
      shift_(spec.shift) {}

Matrix* MlpLayer::run(Step& step, const Matrix& x) {
  ProjectionGroup& inputs = groups_[0];
  ProjectionGroup& output = groups_[1];
  if (!inputs.run(step, x)) return nullptr;
  Matrix& inner = inputs[0].out();
  const float limit = limit_.value_or(std::numeric_limits<float>::infinity());
  for_tokens(step.team, step.tokens(), [&](std::int64_t t) {
    if (!gated_)
      activation_.plain(inner.row(t), inner.cols());
    else if (plain_)
      activation_.gated(inner.row(t), inputs[1].out().row(t), inner.cols());
    else
      step.vectors.clamped(inner.row(t), inputs[1].out().row(t), inner.cols(), limit, alpha_, shift_);
  });
  return output.run(step, inner) ? &output[0].out() : nullptr;
}

}  // namespace gossamer
