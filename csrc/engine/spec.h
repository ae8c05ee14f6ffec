// A transformer described by its parts, field for field as gossamer.arch.spec has it, which says what they mean.
// `visit` names every field; whoever reads a description visits, and refuses what is not named here. A name in a table
// of kernels is its entry there.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "engine/spec_parts.h"

namespace gossamer::spec {

// A matrix of a mixer by its short name.
struct Linear {
  std::string name;
  int rows = 0;
  int cols = 0;
  bool bias = false;
  std::string place = {};  // the name of where outputs go, which several may share; empty: its own
  int chosen = 1;          // of every `alternatives` such matrices, so many are read for a token
  int alternatives = 1;
  bool memory = false;  // it reads what an encoder gave, once a text
};

// Linears that read the same inputs; an attention's second of three reads the memory. The output of a mixer's last
// group, one linear, joins the stream.
using Group = std::vector<Linear>;

struct Attention {
  static constexpr const char* kPart = "attention";
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  float scale = 0;
  std::optional<Positions> positions;
  std::vector<std::string> biases;
  std::optional<int> window;
  std::optional<float> softcap;
  std::optional<float> clip;
  std::optional<QkNorm> qk_norm;
  bool sinks = false;
  std::optional<QueryScale> query_scale;
  bool causal = true;
  Reads reads = Reads::kSelf;
  Values values = Values::kOwn;
  std::optional<Norm> v_norm;

  template <class Visitor>
  void visit(Visitor& field) {
    field("heads", heads);
    field("kv_heads", kv_heads);
    field("head_dim", head_dim);
    field("scale", scale);
    field("positions", positions);
    field("biases", biases);
    field("window", window);
    field("softcap", softcap);
    field("clip", clip);
    field("qk_norm", qk_norm);
    field("sinks", sinks);
    field("query_scale", query_scale);
    field("causal", causal);
    field("reads", reads);
    field("values", values);
    field("v_norm", v_norm);
  }
  const RelativeBias* relative_bias() const { return positions ? std::get_if<RelativeBias>(&*positions) : nullptr; }
  const char* name() const { return reads == Reads::kSelf ? "attn" : "cross"; }
  // What is before the names of its linears and vectors.
  std::string prefix() const { return reads == Reads::kSelf ? "" : "cross_"; }
  std::vector<Group> groups(int hidden) const;
};

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

using Mixer = std::variant<Attention, Mlp, Experts>;

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

struct Learned {
  static constexpr const char* kPart = "learned";
  int count = 0;
  int offset = 0;

  template <class Visitor>
  void visit(Visitor& field) {
    field("count", count);
    field("offset", offset);
  }
};

struct Sinusoids {
  static constexpr const char* kPart = "sinusoids";
  std::vector<float> frequencies;
  int offset = 0;

  template <class Visitor>
  void visit(Visitor& field) {
    field("frequencies", frequencies);
    field("offset", offset);
  }
};

struct Mel {
  int bins = 0;

  template <class Visitor>
  void visit(Visitor& field) {
    field("bins", bins);
  }
};

struct Embedding {
  std::optional<std::variant<Learned, Sinusoids>> positions;
  float scale = 1;
  std::optional<int> project;
  std::optional<Norm> norm;
  int types = 0;
  bool shared = false;
  std::optional<Mel> mel;

  template <class Visitor>
  void visit(Visitor& field) {
    field("positions", positions);
    field("scale", scale);
    field("project", project);
    field("norm", norm);
    field("types", types);
    field("shared", shared);
    field("mel", mel);
  }
};

struct Head {
  bool tied = false;
  bool bias = false;
  float scale = 1;
  std::optional<float> softcap;
  std::optional<int> project;

  template <class Visitor>
  void visit(Visitor& field) {
    field("tied", tied);
    field("bias", bias);
    field("scale", scale);
    field("softcap", softcap);
    field("project", project);
  }
};

struct Transformer {
  int hidden = 0;
  int vocab = 0;
  int context = 0;
  Embedding embedding;
  Stack stack;
  std::optional<Head> head;
  std::shared_ptr<const Transformer> encoder;

  template <class Visitor>
  void visit(Visitor& field) {
    field("hidden", hidden);
    field("vocab", vocab);
    field("context", context);
    field("embedding", embedding);
    field("stack", stack);
    field("head", head);
    field("encoder", encoder);
  }
  const Block& block(int layer) const {
    return stack.kinds[static_cast<std::size_t>(stack.layers[static_cast<std::size_t>(layer)])];
  }
};

// The name of a mixer, before its norms' in the names of vectors.
std::string name_of(const Mixer& mixer);

// An attention that has the relative bias that all of a stack share; null where none has one.
const Attention* relative(const Stack& stack);

// Whether no token sees those behind it.
bool causal(const Block& block);

// Throws InvalidArgument naming the field that is out of range or contradicts another.
void validate(const Transformer& transformer);

}  // namespace gossamer::spec
