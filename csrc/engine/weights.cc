#include "engine/weights.h"

#include "common/error.h"

namespace gossamer {

void check_shape(const std::string& name, const std::shared_ptr<const PackedWeight>& weight, int rows, int cols) {
  require(weight != nullptr, "weight '", name, "' is missing");
  const WeightView& view = weight->view();
  require(view.rows == rows && view.cols == cols, "weight '", name, "' is ", view.rows, " x ", view.cols,
          ", but the config asks for ", rows, " x ", cols);
}

Weights::Weights(const PackedWeights& weights, const Vectors& vectors, std::string activations)
    : weights_(weights), vectors_(vectors), activations_(std::move(activations)) {
  if (activations_ != "auto") (void)activation_from_name(activations_);
}

std::unique_ptr<Linear> Weights::take(const std::string& name, int rows, int cols) {
  taken_.insert(name);
  const auto found = weights_.find(name);
  std::shared_ptr<const PackedWeight> weight = found == weights_.end() ? nullptr : found->second;
  check_shape(name, weight, rows, cols);
  return std::make_unique<Linear>(std::move(weight), activations_);
}

std::vector<float> Weights::take_vector(const std::string& name, int size) {
  taken_.insert(name);
  const auto found = vectors_.find(name);
  require(found != vectors_.end(), "vector '", name, "' is missing");
  require(static_cast<int>(found->second.size()) == size, "vector '", name, "' has ", found->second.size(),
          " elements, but the config asks for ", size);
  return found->second;
}

const PackedWeight* Weights::find(const std::string& name) const {
  const auto found = weights_.find(name);
  return found == weights_.end() ? nullptr : found->second.get();
}

void Weights::require_all_taken() const {
  for (const auto& [name, unused] : weights_)
    require(taken_.count(name) != 0, "weight '", name, "' is unknown to this decoder");
  for (const auto& [name, unused] : vectors_)
    require(taken_.count(name) != 0, "vector '", name, "' is unknown to this decoder");
}

}  // namespace gossamer
