// Attention of tokens over the keys and values of their sequences.
#pragma once

#include <string>

#include "engine/layers/mixer.h"

namespace gossamer {

class AttentionLayer final : public Mixer {
 public:
  // kv_layer: its number among the layers with keys and values.
  AttentionLayer(const spec::Attention& spec, const std::string& prefix, int kv_layer, Build& build);

  Matrix* run(Step& step, const Matrix& x) override;

 private:
  AttentionShape shape_;
  int kv_layer_;
  const Rotary* rotary_ = nullptr;  // null: positions do not come in here
  Matrix* mixed_;
};

}  // namespace gossamer
