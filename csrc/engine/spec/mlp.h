// MLPs.
#pragma once

#include "engine/spec/linear.h"
#include "kernels/vector_kernels.h"

namespace gossamer::spec {

struct Mlp {
  static constexpr const char* kPart = "mlp";
  int width = 0;
  const ActivationKernels* activation = nullptr;
  bool gated = true;
  std::vector<std::string> biases;
  std::optional<float> limit;
  float alpha = 1;
  float shift = 0;

  template <class Visitor>
  void visit(Visitor& field) {
    field("width", width);
    field("activation", activation);
    field("gated", gated);
    field("biases", biases);
    field("limit", limit);
    field("alpha", alpha);
    field("shift", shift);
  }
  static const char* name() { return "mlp"; }
  // Whether gate and up are taken as they are, and the activation as well.
  bool plain() const { return !limit && alpha == 1 && shift == 0; }
  std::vector<Group> groups(int hidden) const;
};

inline void check(const Mlp& mlp, int hidden, const Where& where) {
  where.size("width", mlp.width);
  check_biases(mlp.biases, mlp.groups(hidden), where);
  where.above_zero("limit", mlp.limit);
  where.above_zero("alpha", mlp.alpha);
  where.must(std::isfinite(mlp.shift), ".shift must be finite, got ", mlp.shift);
  where.must(mlp.plain() || (mlp.gated && mlp.activation->clamped != nullptr),
             ": limit, alpha and shift are for a gate with silu");
}

inline std::vector<Group> Mlp::groups(int hidden) const {
  Group inputs;
  if (gated) inputs.push_back({"gate", width, hidden, has(biases, "gate")});
  inputs.push_back({"up", width, hidden, has(biases, "up")});
  return {inputs, {{"down", hidden, width, has(biases, "down")}}};
}

}  // namespace gossamer::spec
