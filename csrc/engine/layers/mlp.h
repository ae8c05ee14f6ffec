// down(activation(gate(x)) * up(x)), or down(activation(up(x))); gate and up may be clamped
#pragma once

#include <optional>
#include <string>

#include "engine/layers/mixer.h"

namespace gossamer {

class MlpLayer final : public Mixer {
 public:
  MlpLayer(const spec::Mlp& spec, const std::string& prefix, Build& build);

  Matrix* run(Step& step, const Matrix& x) override;

 private:
  ActivationKernels activation_;
  bool gated_;
  bool plain_;
  std::optional<float> limit_;
  float alpha_;
  float shift_;
};

}  // namespace gossamer
