#include "engine/layers/mixer.h"

#include "engine/layers/attention.h"
#include "engine/layers/experts.h"
#include "engine/layers/mlp.h"

namespace gossamer {
namespace {

std::unique_ptr<Mixer> make(const spec::Attention& spec, const std::string& prefix, KvLayers& layers, Build& build) {
  int& layer = spec.reads == spec::Reads::kSelf ? layers.own : layers.memory;
  return std::make_unique<AttentionLayer>(spec, prefix, layer++, build);
}

std::unique_ptr<Mixer> make(const spec::Mlp& spec, const std::string& prefix, KvLayers&, Build& build) {
  return std::make_unique<MlpLayer>(spec, prefix, build);
}

std::unique_ptr<Mixer> make(const spec::Experts& spec, const std::string& prefix, KvLayers&, Build& build) {
  return std::make_unique<ExpertsLayer>(spec, prefix, build);
}

}  // namespace

std::unique_ptr<Mixer> make_mixer(const spec::Mixer& spec, const std::string& prefix, KvLayers& layers, Build& build) {
  return std::visit([&](const auto& part) { return make(part, prefix, layers, build); }, spec);
}

std::vector<KvShape> kv_shapes(const spec::Mixer& spec, spec::Reads of) {
  const auto* attention = std::get_if<spec::Attention>(&spec);
  if (attention == nullptr || attention->reads != of) return {};
  return {{attention->kv_heads, attention->head_dim, attention->window.value_or(0)}};
}

}  // namespace gossamer
