// Mixtures of experts.
#pragma once

#include <utility>
#include <variant>

#include "engine/spec/mlp.h"

namespace gossamer::spec {

constexpr int kMostExperts = 4096;

// What the weights of experts are a softmax over.
enum class Softmax : std::uint8_t { kAll, kChosen };
template <>
struct Words<Softmax> {
  static constexpr const char* list[] = {"all", "chosen"};
};

struct Routing {
  Softmax softmax = Softmax::kAll;
  bool normalized = false;
  bool bias = false;
  float scale = 1;

  template <class Visitor>
  void visit(Visitor& field) {
    field("softmax", softmax);
    field("normalized", normalized);
    field("bias", bias);
    field("scale", scale);
  }
};

struct Experts {
  static constexpr const char* kPart = "experts";
  int count = 0;
  int chosen = 0;
  std::variant<Mlp> expert;
  Routing routing;
  std::optional<std::variant<Mlp>> shared;
  bool shared_gate = false;

  template <class Visitor>
  void visit(Visitor& field) {
    field("count", count);
    field("chosen", chosen);
    field("expert", expert);
    field("routing", routing);
    field("shared", shared);
    field("shared_gate", shared_gate);
  }
  static const char* name() { return "mlp"; }
  const Mlp& each() const { return std::get<Mlp>(expert); }
  // The router, with the shared expert's gate; inputs and output of each expert; inputs and output of the shared one.
  std::vector<Group> groups(int hidden) const;
};

inline void check(const Experts& experts, int hidden, const Where& where) {
  where.must(experts.count > 0 && experts.count <= kMostExperts, ".count must be between 1 and ", kMostExperts,
             ", got ", experts.count);
  where.must(experts.chosen > 0 && experts.chosen <= experts.count, ".chosen must be between 1 and count (",
             experts.count, "), got ", experts.chosen);
  check(experts.each(), hidden, where / "expert");
  if (experts.shared) check(std::get<Mlp>(*experts.shared), hidden, where / "shared");
  where.must(experts.shared.has_value() || !experts.shared_gate, ".shared_gate must be false where nothing is shared");
  const Where mine = where / "routing";
  const Routing& routing = experts.routing;
  mine.must(routing.scale > 0 && std::isfinite(routing.scale), ".scale must be finite and above 0, got ",
            routing.scale);
  mine.must(routing.softmax == Softmax::kAll || !routing.normalized, ".normalized must be false for this softmax");
}

inline std::vector<Group> Experts::groups(int hidden) const {
  std::vector<Group> found{{{"router", count, hidden, routing.bias}}};
  if (shared_gate) found[0].push_back({"shared_gate", 1, hidden});
  for (int e = 0; e < count; ++e) {
    for (Group& group : each().groups(hidden)) {
      for (Linear& linear : group) {
        linear.place = "experts." + linear.name;
        linear.name = "experts." + std::to_string(e) + "." + linear.name;
        linear.chosen = chosen;
        linear.alternatives = count;
      }
      found.push_back(std::move(group));
    }
  }
  if (!shared) return found;
  for (Group& group : std::get<Mlp>(*shared).groups(hidden)) {
    for (Linear& linear : group) linear.name = "shared." + linear.name;
    found.push_back(std::move(group));
  }
  return found;
}

}  // namespace gossamer::spec
