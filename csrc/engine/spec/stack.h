// Branches, the blocks that they make, and the stack of them.
#pragma once

#include <variant>

#include "engine/spec/attention.h"
#include "engine/spec/experts.h"
#include "engine/spec/mlp.h"

namespace gossamer::spec {

constexpr std::size_t kMostLayers = 4096;

using Mixer = std::variant<Attention, Mlp, Experts>;

// The name of a mixer, before its norms' in the names of vectors.
inline std::string name_of(const Mixer& mixer) {
  return std::visit([](const auto& part) { return std::string(part.name()); }, mixer);
}

struct Branch {
  Mixer mixer;
  std::optional<Norm> before;
  std::optional<Norm> behind;
  std::optional<Norm> after_sum;
  float scale = 1;

  template <class Visitor>
  void visit(Visitor& field) {
    field("mixer", mixer);
    field("before", before);
    field("behind", behind);
    field("after_sum", after_sum);
    field("scale", scale);
  }
};

struct Block {
  std::vector<Branch> branches;
  bool parallel = false;
  std::optional<Norm> norm;
  bool scalar = false;

  template <class Visitor>
  void visit(Visitor& field) {
    field("branches", branches);
    field("parallel", parallel);
    field("norm", norm);
    field("scalar", scalar);
  }
};

struct Stack {
  std::vector<Block> kinds;
  std::vector<int> layers;
  std::optional<Norm> norm;

  template <class Visitor>
  void visit(Visitor& field) {
    field("kinds", kinds);
    field("layers", layers);
    field("norm", norm);
  }
};

// Attentions of all kinds of blocks.
inline std::vector<const Attention*> attentions(const Stack& stack) {
  std::vector<const Attention*> found;
  for (const Block& block : stack.kinds)
    for (const Branch& branch : block.branches)
      if (const auto* attention = std::get_if<Attention>(&branch.mixer)) found.push_back(attention);
  return found;
}

// An attention that has the relative bias that all of a stack share; null where none has one.
inline const Attention* relative(const Stack& stack) {
  for (const Attention* attention : attentions(stack))
    if (attention->relative_bias() != nullptr) return attention;
  return nullptr;
}

// Whether no token sees those behind it.
inline bool causal(const Block& block) {
  for (const Branch& branch : block.branches) {
    const auto* attention = std::get_if<Attention>(&branch.mixer);
    if (attention != nullptr && attention->reads == Reads::kSelf && !attention->causal) return false;
  }
  return true;
}

inline void check(const Block& block, int hidden, const Where& where) {
  where.must(!block.branches.empty(), ".branches is empty");
  check(block.norm, where / "norm");
  where.must(block.parallel || !block.norm, ".norm is for parallel branches");
  std::vector<std::string> names;
  for (std::size_t i = 0; i < block.branches.size(); ++i) {
    const Branch& branch = block.branches[i];
    const Where mine = (where / "branches")[i];
    std::visit([&](const auto& mixer) { check(mixer, hidden, mine / "mixer"); }, branch.mixer);
    check(branch.before, mine / "before");
    check(branch.behind, mine / "behind");
    check(branch.after_sum, mine / "after_sum");
    mine.above_zero("scale", branch.scale);
    mine.must(!branch.after_sum || !block.parallel, ".after_sum is for branches in turn, not for parallel ones");
    mine.must(!branch.before || !block.norm, ".before must be null where the block has a norm");
    mine.must(!has(names, name_of(branch.mixer)), " is a second '", name_of(branch.mixer), "'");
    names.push_back(name_of(branch.mixer));
  }
}

inline void check(const Stack& stack, int hidden, const Where& where) {
  for (std::size_t i = 0; i < stack.kinds.size(); ++i) check(stack.kinds[i], hidden, (where / "kinds")[i]);
  where.must(!stack.layers.empty() && stack.layers.size() <= kMostLayers, ".layers must be from 1 to ", kMostLayers,
             " numbers, got ", stack.layers.size());
  for (std::size_t i = 0; i < stack.layers.size(); ++i)
    (where / "layers")[i].must(stack.layers[i] >= 0 && stack.layers[i] < static_cast<int>(stack.kinds.size()),
                               " must be a number of the ", stack.kinds.size(), " kinds, got ", stack.layers[i]);
  check(stack.norm, where / "norm");
  const Attention* shared = relative(stack);
  for (const Attention* attention : attentions(stack))
    where.must(attention->relative_bias() == nullptr ||
                   (attention->heads == shared->heads && *attention->relative_bias() == *shared->relative_bias()),
               " must have one relative bias for all attentions, and so many heads");
}

}  // namespace gossamer::spec
