// Attention of tokens over the keys and values of their sequences.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine/layers/mixer.h"
#include "engine/layers/norm.h"

namespace gossamer {

class AttentionLayer final : public Mixer {
 public:
  // kv_layer: its number among the layers with keys and values of what it reads.
  AttentionLayer(const spec::Attention& spec, const std::string& prefix, int kv_layer, Build& build);

  Matrix* run(Step& step, const Matrix& x) override;
  bool remember(Step& step, const Matrix& x) override;

 private:
  // Norms of the heads of queries or keys.
  struct HeadNorms {
    std::vector<NormLayer> norms;  // one for all, or for each its own; empty: none
    int count = 0;                 // of what they are taken over
    int width = 0;
    void run(float* x) const;
  };
  static HeadNorms head_norms(const spec::Attention& spec, const std::string& name, int heads, Build& build);
  // What is done with one token's queries, and its keys and values, before any of them is looked at, rotation left out.
  void prepare_query(const Step& step, std::int64_t t, float* q) const;
  void prepare_key(const Step& step, float* k, float* v) const;
  // Where values are put: where they come out, or, where they are keys, as these come out.
  Matrix& values_of(ProjectionGroup& inputs) { return values_ != nullptr ? *values_ : inputs[2].out(); }

  Matrix* mix(Step& step, const KvCache::Layer& layer, const std::vector<TokenPlace>& places, Matrix& q);

  AttentionShape shape_;
  bool reads_memory_;
  int kv_layer_;
  const Rotary* rotary_ = nullptr;  // null: positions do not come in here
  std::vector<float> slopes_, sinks_;
  HeadNorms q_norms_, k_norms_, v_norms_;
  std::optional<float> clip_;
  std::optional<spec::QueryScale> query_scale_;
  bool prepares_;
  Matrix* values_ = nullptr;  // copies of keys; null: they have a linear of their own
  Matrix* mixed_;
};

}  // namespace gossamer
