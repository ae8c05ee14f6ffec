#include "engine/layers/mixer.h"

#include "engine/layers/attention.h"
#include "engine/layers/experts.h"
#include "engine/layers/mlp.h"

namespace gossamer {
namespace {

std::unique_ptr<Mixer> make(const spec::Attention& spec, const std::string& prefix, int& kv_layer, Build& build) {
  return std::make_unique<AttentionLayer>(spec, prefix, kv_layer++, build);
}

std::unique_ptr<Mixer> make(const spec::Mlp& spec, const std::string& prefix, int&, Build& build) {
  return std::make_unique<MlpLayer>(spec, prefix, build);
}

std::unique_ptr<Mixer> make(const spec::Experts& spec, const std::string& prefix, int&, Build& build) {
  return std::make_unique<ExpertsLayer>(spec, prefix, build);
}

std::vector<KvShape> keeps(const spec::Attention& spec) { return {{spec.kv_heads, spec.head_dim}}; }
std::vector<KvShape> keeps(const spec::Mlp&) { return {}; }
std::vector<KvShape> keeps(const spec::Experts&) { return {}; }

}  // namespace

std::unique_ptr<Mixer> make_mixer(const spec::Mixer& spec, const std::string& prefix, int& kv_layer, Build& build) {
  return std::visit([&](const auto& part) { return make(part, prefix, kv_layer, build); }, spec);
}

std::vector<KvShape> kv_shapes(const spec::Mixer& spec) {
  return std::visit([](const auto& part) { return keeps(part); }, spec);
}

}  // namespace gossamer
