#include "engine/layers/attention.h"

#include "ops/tokens.h"

namespace gossamer {

AttentionLayer::AttentionLayer(const spec::Attention& spec, const std::string& prefix, int kv_layer, Build& build)
    : Mixer(spec.groups(build.hidden), prefix, build),
      shape_{spec.heads, spec.kv_heads, spec.head_dim, spec.scale},
      kv_layer_(kv_layer),
      mixed_(&build.workspace.matrix("mixed", spec.heads * spec.head_dim)) {
  if (spec.positions)
    if (const auto* rope = std::get_if<spec::Rope>(&*spec.positions)) rotary_ = &build.workspace.rotary(*rope);
}

Matrix* AttentionLayer::run(Step& step, const Matrix& x) {
  ProjectionGroup& inputs = groups_[0];
  ProjectionGroup& output = groups_[1];
  if (!inputs.run(step, x)) return nullptr;
  Matrix& q = inputs[0].out();
  Matrix& k = inputs[1].out();
  const Matrix& v = inputs[2].out();
  const KvCache::Layer& layer = step.cache.layer(kv_layer_ - step.first_kv_layer);
  const std::vector<TokenPlace>& places = step.chunk.places[static_cast<std::size_t>(layer.pool)];
  for_tokens(step.team, step.tokens(), [&](std::int64_t t) {
    if (rotary_ != nullptr) {
      const float* cosines = rotary_->cosines(t);
      const float* sines = rotary_->sines(t);
      step.vectors.rope(q.row(t), shape_.heads, shape_.head_dim, rotary_->half(), cosines, sines);
      step.vectors.rope(k.row(t), shape_.kv_heads, shape_.head_dim, rotary_->half(), cosines, sines);
    }
    append(step.kv, shape_, layer.place, places[static_cast<std::size_t>(t)], k.row(t), v.row(t));
  });
  step.attention.run(step.team, step.kv, shape_, layer.place, places, q.data(), q.stride(), mixed_->data(),
                     mixed_->stride());
  return output.run(step, *mixed_) ? &output[0].out() : nullptr;
}

}  // namespace gossamer
