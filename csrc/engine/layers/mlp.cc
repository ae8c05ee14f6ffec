#include "engine/layers/mlp.h"

#include "ops/tokens.h"

namespace gossamer {

MlpLayer::MlpLayer(const spec::Mlp& spec, const std::string& prefix, Build& build)
    : Mixer(spec.groups(build.hidden), prefix, build) {
  switch (spec.activation) {
    case spec::Activation::kSilu:
      gate_ = build.vectors.silu_mul;
  }
}

Matrix* MlpLayer::run(Step& step, const Matrix& x) {
  ProjectionGroup& inputs = groups_[0];
  ProjectionGroup& output = groups_[1];
  if (!inputs.run(step, x)) return nullptr;
  Matrix& gate = inputs[0].out();
  const Matrix& up = inputs[1].out();
  for_tokens(step.team, step.tokens(), [&](std::int64_t t) { gate_(gate.row(t), up.row(t), gate.cols()); });
  return output.run(step, gate) ? &output[0].out() : nullptr;
}

}  // namespace gossamer
