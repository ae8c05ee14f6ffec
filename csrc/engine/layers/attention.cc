#include "engine/layers/attention.h"

#include <algorithm>
#include <cmath>

#include "ops/tokens.h"

namespace gossamer {

AttentionLayer::AttentionLayer(const spec::Attention& spec, const std::string& prefix, int kv_layer, Build& build)
    : Mixer(spec.groups(build.hidden), prefix, build),
      shape_{spec.heads, spec.kv_heads, spec.head_dim, spec.scale, spec.window.value_or(0), spec.softcap.value_or(0)},
      reads_memory_(spec.reads == spec::Reads::kMemory),
      kv_layer_(kv_layer),
      q_norms_(head_norms(spec, prefix + spec.prefix() + "q_norm", spec.heads, build)),
      k_norms_(head_norms(spec, prefix + spec.prefix() + "k_norm", spec.kv_heads, build)),
      clip_(spec.clip),
      query_scale_(spec.query_scale),
      prepares_(spec.qk_norm || spec.clip || spec.query_scale || spec.v_norm || spec.values == spec::Values::kKeys),
      mixed_(&build.workspace.matrix("mixed", spec.heads * spec.head_dim)) {
  if (spec.values == spec::Values::kKeys) values_ = &build.workspace.matrix("values", spec.kv_heads * spec.head_dim);
  if (spec.v_norm) {
    v_norms_.count = spec.kv_heads;
    v_norms_.width = spec.head_dim;
    v_norms_.norms.emplace_back(*spec.v_norm, prefix + spec.prefix() + "v_norm", spec.head_dim, build);
  }
  if (spec.positions) {
    if (const auto* rope = std::get_if<spec::Rope>(&*spec.positions)) rotary_ = &build.workspace.rotary(*rope);
    if (const auto* alibi = std::get_if<spec::Alibi>(&*spec.positions)) slopes_ = alibi->slopes;
  }
  shape_.causal = spec.causal;
  if (spec.relative_bias() != nullptr) {
    shape_.bias = build.relative_bias;
    shape_.bias_stride = build.relative_stride;
  }
  if (spec.sinks) sinks_ = build.weights.take_vector(prefix + spec.prefix() + "sinks", spec.heads);
  if (!slopes_.empty()) shape_.slopes = slopes_.data();
  if (!sinks_.empty()) shape_.sinks = sinks_.data();
}

AttentionLayer::HeadNorms AttentionLayer::head_norms(const spec::Attention& spec, const std::string& name, int heads,
                                                     Build& build) {
  HeadNorms found;
  if (!spec.qk_norm) return found;
  const bool row = spec.qk_norm->over == spec::Over::kRow;
  found.count = row ? 1 : heads;
  found.width = row ? heads * spec.head_dim : spec.head_dim;
  for (int i = 0; i < (spec.qk_norm->own ? heads : 1); ++i)
    found.norms.emplace_back(spec.qk_norm->norm, spec.qk_norm->own ? name + "_" + std::to_string(i) : name, found.width,
                             build);
  return found;
}

void AttentionLayer::HeadNorms::run(float* x) const {
  if (norms.empty()) return;
  for (int i = 0; i < count; ++i, x += width) norms[norms.size() == 1 ? 0 : static_cast<std::size_t>(i)].run(x, x);
}

void AttentionLayer::prepare_query(const Step& step, std::int64_t t, float* q) const {
  const int query = shape_.heads * shape_.head_dim;
  q_norms_.run(q);
  if (clip_) step.vectors.clip(q, query, *clip_);
  if (!query_scale_) return;
  const int steps = step.chunk.positions[static_cast<std::size_t>(t)] / query_scale_->length;
  const float factor = 1.0F + query_scale_->beta * std::log(1.0F + static_cast<float>(steps));
  for (int i = 0; i < query; ++i) q[i] *= factor;
}

void AttentionLayer::prepare_key(const Step& step, float* k, float* v) const {
  const int key = shape_.kv_heads * shape_.head_dim;
  if (values_ != nullptr) std::copy_n(k, key, v);
  k_norms_.run(k);
  v_norms_.run(v);
  if (!clip_) return;
  step.vectors.clip(k, key, *clip_);
  step.vectors.clip(v, key, *clip_);
}

bool AttentionLayer::remember(Step& step, const Matrix& x) {
  if (!reads_memory_) return true;
  ProjectionGroup& inputs = groups_[1];
  if (!inputs.run(step, x)) return false;
  const KvCache::Layer& layer = step.cache.layer(kv_layer_ - step.first_kv_layer);
  const std::vector<TokenPlace>& places = step.chunk.places[static_cast<std::size_t>(layer.pool)];
  for_tokens(step.team, step.tokens(), [&](std::int64_t t) {
    float* k = inputs[0].out().row(t);
    float* v = inputs[1].out().row(t);
    if (prepares_) prepare_key(step, k, v);
    append(step.kv, shape_, layer.place, places[static_cast<std::size_t>(t)], k, v);
  });
  return true;
}

Matrix* AttentionLayer::run(Step& step, const Matrix& x) {
  ProjectionGroup& inputs = groups_[0];
  if (!inputs.run(step, x)) return nullptr;
  Matrix& q = inputs[0].out();
  if (reads_memory_) {
    if (prepares_) for_tokens(step.team, step.tokens(), [&](std::int64_t t) { prepare_query(step, t, q.row(t)); });
    const KvCache::Layer& layer = step.memory->layer(kv_layer_ - step.first_memory_layer);
    return mix(step, layer, step.chunk.memories[static_cast<std::size_t>(layer.pool)], q);
  }
  Matrix& k = inputs[1].out();
  Matrix& v = values_of(inputs);
  const KvCache::Layer& layer = step.cache.layer(kv_layer_ - step.first_kv_layer);
  const std::vector<TokenPlace>& places = step.chunk.places[static_cast<std::size_t>(layer.pool)];
  for_tokens(step.team, step.tokens(), [&](std::int64_t t) {
    if (prepares_) {
      prepare_query(step, t, q.row(t));
      prepare_key(step, k.row(t), v.row(t));
    }
    if (rotary_ != nullptr) {
      const auto rotate = step.vectors.ropes[rotary_->rope().interleaved ? 1 : 0];
      const float* cosines = rotary_->cosines(t);
      const float* sines = rotary_->sines(t);
      rotate(q.row(t), shape_.heads, shape_.head_dim, rotary_->half(), cosines, sines);
      rotate(k.row(t), shape_.kv_heads, shape_.head_dim, rotary_->half(), cosines, sines);
    }
    append(step.kv, shape_, layer.place, places[static_cast<std::size_t>(t)], k.row(t), v.row(t));
  });
  return mix(step, layer, places, q);
}

Matrix* AttentionLayer::mix(Step& step, const KvCache::Layer& layer, const std::vector<TokenPlace>& places, Matrix& q) {
  step.attention.run(step.team, step.kv, shape_, layer.place, places, q.data(), q.stride(), mixed_->data(),
                     mixed_->stride());
  ProjectionGroup& output = groups_.back();
  return output.run(step, *mixed_) ? &output[0].out() : nullptr;
}

}  // namespace gossamer
