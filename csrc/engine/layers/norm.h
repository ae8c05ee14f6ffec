// Norms of one token's row.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/spec.h"
#include "engine/step.h"

namespace gossamer {

class NormLayer {
 public:
  NormLayer(const spec::Norm& spec, const std::string& name, int width, Build& build);

  // In place, too.
  void run(const float* x, float* out) const {
    run_(x, weight_.data(), bias_.empty() ? nullptr : bias_.data(), static_cast<std::int64_t>(weight_.size()), eps_,
         out);
  }

 private:
  decltype(NormKernel::run) run_;
  float eps_;
  std::vector<float> weight_;
  std::vector<float> bias_;  // empty: none
};

// The one that is described; null where none is.
std::unique_ptr<NormLayer> make_norm(const std::optional<spec::Norm>& spec, const std::string& name, int width,
                                     Build& build);

}  // namespace gossamer
