// Frames of a spectrum as rows of the stream: two convolutions over three of them each, the second one of every other.
#pragma once

#include <memory>
#include <vector>

#include "engine/spec/embedding.h"
#include "engine/step.h"

namespace gossamer {

class MelLayer {
 public:
  MelLayer(const spec::Mel& spec, Build& build);

  // The rows of a chunk's frames.
  void run(Step& step, Matrix& out) const;

 private:
  const VectorKernels& vectors_;
  const ActivationKernels& gelu_;
  std::vector<float> ones_;  // times which it is taken
  int bins_;
  std::unique_ptr<Linear> first_, second_;
  std::vector<float> first_bias_, second_bias_;
  Matrix& unfolded_;  // what each output of the first reads
  Matrix& inner_;     // what it gives
  Matrix& wide_;      // what each output of the second reads
};

}  // namespace gossamer
