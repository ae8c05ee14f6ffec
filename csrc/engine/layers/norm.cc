#include "engine/layers/norm.h"

namespace gossamer {

NormLayer::NormLayer(const spec::Norm& spec, const std::string& name, int width, Build& build)
    : eps_(spec.eps), weight_(build.weights.take_vector(name, width)) {
  switch (spec.kind) {
    case spec::NormKind::kRms:
      run_ = build.vectors.rms_norm;
  }
}

std::optional<NormLayer> make_norm(const std::optional<spec::Norm>& spec, const std::string& name, int width,
                                   Build& build) {
  if (!spec) return std::nullopt;
  return NormLayer(*spec, name, width, build);
}

}  // namespace gossamer
