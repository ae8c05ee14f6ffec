// down(activation(gate(x)) * up(x)), or down(activation(up(x))); gate and up may be clamped
#pragma once

#include <limits>
#include <string>
#include <vector>

#include "engine/layers/mixer.h"

namespace gossamer {

// What is done between the linears of an MLP.
class MlpActivation {
 public:
  explicit MlpActivation(const spec::Mlp& spec)
      : kernels_(*spec.activation),
        ones_(spec.gated ? 0 : static_cast<std::size_t>(spec.width), 1.0F),
        plain_(spec.plain()),
        limit_(spec.limit.value_or(std::numeric_limits<float>::infinity())),
        alpha_(spec.alpha),
        shift_(spec.shift) {}

  // The matrix that `run` leaves the inputs of `down` in.
  static Matrix& inner(ProjectionGroup& inputs) { return inputs[0].out(); }
  // One row of what the first linears gave.
  void run(ProjectionGroup& inputs, std::int64_t row) const {
    Matrix& inner = inputs[0].out();
    const float* factors = ones_.empty() ? inputs[1].out().row(row) : ones_.data();
    if (plain_)
      kernels_.run(inner.row(row), factors, inner.cols());
    else
      kernels_.clamped(inner.row(row), factors, inner.cols(), limit_, alpha_, shift_);
  }

 private:
  ActivationKernels kernels_;
  std::vector<float> ones_;  // times which an activation without a gate is taken; empty: there is one
  bool plain_;               // neither clamped, nor scaled, nor shifted
  float limit_;
  float alpha_;
  float shift_;
};

class MlpLayer final : public Mixer {
 public:
  MlpLayer(const spec::Mlp& spec, const std::string& prefix, Build& build);

  Matrix* run(Step& step, const Matrix& x) override;

 private:
  MlpActivation activation_;
};

// The same of linears that belong to another mixer; null when the probe has seen enough.
Matrix* run_mlp(Step& step, const Matrix& x, ProjectionGroup& inputs, const MlpActivation& activation,
                ProjectionGroup& output);

}  // namespace gossamer
