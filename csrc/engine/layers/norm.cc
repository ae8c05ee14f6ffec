#include "engine/layers/norm.h"

namespace gossamer {

NormLayer::NormLayer(const spec::Norm& spec, const std::string& name, int width, Build& build)
    : run_(spec.kind->run),
      eps_(spec.eps),
      weight_(spec.weight ? build.weights.take_vector(name, width)
                          : std::vector<float>(static_cast<std::size_t>(width), 1.0F)) {
  if (spec.bias) bias_ = build.weights.take_vector(name + ".bias", width);
}

std::unique_ptr<NormLayer> make_norm(const std::optional<spec::Norm>& spec, const std::string& name, int width,
                                     Build& build) {
  return spec ? std::make_unique<NormLayer>(*spec, name, width, build) : nullptr;
}

}  // namespace gossamer
