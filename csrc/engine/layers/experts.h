// MLPs of which every token goes through a few, whose outputs are summed with weights.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine/layers/mlp.h"

namespace gossamer {

class ExpertsLayer final : public Mixer {
 public:
  ExpertsLayer(const spec::Experts& spec, const std::string& prefix, Build& build);

  // Only the weights of experts that are chosen are read, each once for all of its tokens. A token's outputs are summed
  // in the order of its experts, whoever else is there.
  Matrix* run(Step& step, const Matrix& x) override;

  std::vector<std::string> captured() const override { return {"routing"}; }

 private:
  ProjectionGroup& router() { return groups_[0]; }
  ProjectionGroup& inputs(int expert) { return groups_[static_cast<std::size_t>(1 + 2 * expert)]; }
  ProjectionGroup& output(int expert) { return groups_[static_cast<std::size_t>(2 + 2 * expert)]; }

  // Chooses the experts of every token, and gives each of its rows to one of them.
  void route(Step& step);
  // A token's experts, rising, and their weights.
  void choose(const float* logits, float* scores, int* experts, float* weights) const;
  void show_routing(Step& step);
  float shared_weight(std::int64_t token);
  // Rows of one expert; of the one token of a step, all experts read the one row.
  Span span(int expert, bool together) const;

  spec::Experts spec_;
  MlpActivation activation_;
  std::optional<MlpActivation> shared_;
  Matrix* rows_;                // what experts read, [tokens * chosen], ordered by expert
  Matrix* sum_;                 // [tokens]
  Matrix* routing_;             // [tokens], for the probe
  std::vector<float> scores_;   // [tokens][count]
  std::vector<int> experts_;    // [tokens][chosen]
  std::vector<float> weights_;  // [tokens][chosen]
  std::vector<int> places_;     // [tokens][chosen], the row of each
  std::vector<int> starts_;     // of each expert, the first row; one more for the end
  std::vector<int> next_;       // as starts_, while rows are given out
  std::vector<LinearJob> jobs_;
};

}  // namespace gossamer
