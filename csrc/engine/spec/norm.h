// Norms.
#pragma once

#include <string_view>

#include "engine/spec/where.h"
#include "kernels/vector_kernels.h"

namespace gossamer::spec {

struct Norm {
  const NormKernel* kind = nullptr;
  float eps = 0;
  bool bias = false;
  bool weight = true;

  template <class Visitor>
  void visit(Visitor& field) {
    field("kind", kind);
    field("eps", eps);
    field("bias", bias);
    field("weight", weight);
  }
};

inline void check(const Norm& norm, const Where& where) {
  where.must(norm.eps >= 0 && std::isfinite(norm.eps), ".eps must be finite and not negative, got ", norm.eps);
  where.must(std::string_view(norm.kind->name) == "layer" || !norm.bias, ".bias must be false for this kind");
  where.must(norm.weight || !norm.bias, ".bias must be false without a weight");
}

inline void check(const std::optional<Norm>& norm, const Where& where) {
  if (norm) check(*norm, where);
}

}  // namespace gossamer::spec
