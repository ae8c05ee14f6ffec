// What a model is made of, by name: each part takes its own, and what nobody took is an error.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "ops/linear.h"

namespace gossamer {

using PackedWeights = std::map<std::string, std::shared_ptr<const PackedWeight>>;
using Vectors = std::map<std::string, std::vector<float>>;

// Throws InvalidArgument where a weight is missing or has another shape.
void check_shape(const std::string& name, const std::shared_ptr<const PackedWeight>& weight, int rows, int cols);

class Weights {
 public:
  // The maps outlive this. activations: as for Linear.
  Weights(const PackedWeights& weights, const Vectors& vectors, std::string activations);

  // The weight of that name with its kernel. Throws InvalidArgument naming what is missing or of another shape.
  std::unique_ptr<Linear> take(const std::string& name, int rows, int cols);
  std::vector<float> take_vector(const std::string& name, int size);

  // The weight of that name, untaken; null when there is none.
  const PackedWeight* find(const std::string& name) const;
  bool has_vector(const std::string& name) const { return vectors_.count(name) != 0; }

  // Throws InvalidArgument naming one that nobody took.
  void require_all_taken() const;

 private:
  const PackedWeights& weights_;
  const Vectors& vectors_;
  std::string activations_;
  std::set<std::string> taken_;
};

}  // namespace gossamer
