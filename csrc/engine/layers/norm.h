// Norms of one token's row.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/spec/norm.h"
#include "engine/step.h"

namespace gossamer {

class NormLayer {
 public:
  NormLayer(const spec::Norm& spec, const std::string& name, int width, Build& build)
      : run_(spec.kind->run),
        add_(build.vectors.add),
        eps_(spec.eps),
        weight_(spec.weight ? build.weights.take_vector(name, width)
                            : std::vector<float>(static_cast<std::size_t>(width), 1.0F)) {
    if (spec.bias) bias_ = build.weights.take_vector(name + ".bias", width);
  }

  // In place, too.
  void run(const float* x, float* out) const {
    const auto width = static_cast<std::int64_t>(weight_.size());
    run_(x, weight_.data(), width, eps_, out);
    if (!bias_.empty()) add_(out, bias_.data(), width);
  }

 private:
  decltype(NormKernel::run) run_;
  decltype(VectorKernels::add) add_;
  float eps_;
  std::vector<float> weight_;
  std::vector<float> bias_;  // empty: none
};

// The one that is described; null where none is.
inline std::unique_ptr<NormLayer> make_norm(const std::optional<spec::Norm>& spec, const std::string& name, int width,
                                            Build& build) {
  return spec ? std::make_unique<NormLayer>(*spec, name, width, build) : nullptr;
}

}  // namespace gossamer
