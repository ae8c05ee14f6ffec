// Attention, and what its heads have beside their linears.
#pragma once

#include <variant>

#include "engine/spec/linear.h"
#include "engine/spec/norm.h"

namespace gossamer::spec {

struct Rope {
  static constexpr const char* kPart = "rope";
  std::vector<float> inv_freq;
  float scale = 1;
  bool interleaved = false;

  template <class Visitor>
  void visit(Visitor& field) {
    field("inv_freq", inv_freq);
    field("scale", scale);
    field("interleaved", interleaved);
  }
  bool operator==(const Rope&) const = default;
};

struct Alibi {
  static constexpr const char* kPart = "alibi";
  std::vector<float> slopes;

  template <class Visitor>
  void visit(Visitor& field) {
    field("slopes", slopes);
  }
};

struct RelativeBias {
  static constexpr const char* kPart = "relative_bias";
  int buckets = 0;
  std::vector<int> back;
  std::vector<int> ahead;

  template <class Visitor>
  void visit(Visitor& field) {
    field("buckets", buckets);
    field("back", back);
    field("ahead", ahead);
  }
  bool operator==(const RelativeBias&) const = default;
};

using Positions = std::variant<Rope, Alibi, RelativeBias>;

// What norms of queries and keys are taken over.
enum class Over : std::uint8_t { kHead, kRow };
template <>
struct Words<Over> {
  static constexpr const char* list[] = {"head", "row"};
};

struct QkNorm {
  Norm norm;
  Over over = Over::kHead;
  bool own = false;

  template <class Visitor>
  void visit(Visitor& field) {
    field("norm", norm);
    field("over", over);
    field("own", own);
  }
};

struct QueryScale {
  float beta = 0;
  int length = 0;

  template <class Visitor>
  void visit(Visitor& field) {
    field("beta", beta);
    field("length", length);
  }
};

// Whose keys and values attention reads.
enum class Reads : std::uint8_t { kSelf, kMemory };
template <>
struct Words<Reads> {
  static constexpr const char* list[] = {"self", "memory"};
};

// What values are.
enum class Values : std::uint8_t { kOwn, kKeys };
template <>
struct Words<Values> {
  static constexpr const char* list[] = {"own", "keys"};
};

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

inline void check(const Rope& rope, const Attention& attention, const Where& where) {
  where.must(rope.inv_freq.size() <= static_cast<std::size_t>(attention.head_dim / 2), ".inv_freq has ",
             rope.inv_freq.size(), " frequencies, more than half of head_dim (", attention.head_dim, ")");
  for (const float f : rope.inv_freq) where.must(std::isfinite(f), ".inv_freq holds a value that is not finite");
  where.above_zero("scale", rope.scale);
}

inline void check(const Alibi& alibi, const Attention& attention, const Where& where) {
  where.must(alibi.slopes.size() == static_cast<std::size_t>(attention.heads), ".slopes must be ", attention.heads,
             " numbers, one a head, got ", alibi.slopes.size());
  for (const float slope : alibi.slopes) where.must(std::isfinite(slope), ".slopes holds a value that is not finite");
}

inline void check(const RelativeBias& bias, const Attention& attention, const Where& where) {
  where.size("buckets", bias.buckets);
  for (const std::vector<int>* numbers : {&bias.back, &bias.ahead})
    for (const int bucket : *numbers)
      where.must(bucket >= 0 && bucket < bias.buckets, " has bucket ", bucket, ", but ", bias.buckets, " buckets");
  where.must(!bias.back.empty(), ".back is empty");
  where.must(bias.ahead.empty() == attention.causal, ".ahead must be empty where attention is causal, and only there");
}

inline void check(const Attention& attention, int hidden, const Where& where) {
  where.size("heads", attention.heads);
  where.size("kv_heads", attention.kv_heads);
  where.size("head_dim", attention.head_dim);
  where.must(attention.heads % attention.kv_heads == 0, ": heads (", attention.heads,
             ") must be a multiple of kv_heads (", attention.kv_heads, ")");
  where.must(static_cast<std::int64_t>(attention.heads) * attention.head_dim <= kLargest, ": ", attention.heads,
             " heads of ", attention.head_dim, " are too wide");
  where.above_zero("scale", attention.scale);
  if (attention.positions)
    std::visit([&](const auto& part) { check(part, attention, where / "positions"); }, *attention.positions);
  if (attention.window) where.size("window", *attention.window);
  const auto positive = [&](const char* field, const std::optional<float>& value) {
    where.must(!value || (*value > 0 && std::isfinite(*value)), ".", field, " must be finite and above 0");
  };
  positive("softcap", attention.softcap);
  positive("clip", attention.clip);
  if (attention.qk_norm) {
    check(attention.qk_norm->norm, where / "qk_norm" / "norm");
    where.must(attention.qk_norm->over == Over::kHead || !attention.qk_norm->own,
               ".qk_norm.own must be false for norms over a row");
  }
  if (attention.query_scale) {
    const QueryScale& scale = *attention.query_scale;
    (where / "query_scale").must(scale.beta >= 0 && std::isfinite(scale.beta), ".beta must be finite and not negative");
    (where / "query_scale").size("length", scale.length);
  }
  where.must(attention.causal || !attention.positions || !std::holds_alternative<Alibi>(*attention.positions),
             ".positions: slopes are for causal attention");
  if (attention.reads == Reads::kMemory) {
    where.must(!attention.causal, ".causal must be false where a memory is read");
    where.must(!attention.positions, ".positions must be null where a memory is read");
    where.must(!attention.window, ".window must be null where a memory is read");
    where.must(!attention.query_scale, ".query_scale must be null where a memory is read");
    where.must(attention.values == Values::kOwn, ".values must be 'own' where a memory is read");
  }
  check(attention.v_norm, where / "v_norm");
  Attention plain = attention;  // biases are named without the prefix
  plain.reads = Reads::kSelf;
  check_biases(attention.biases, plain.groups(hidden), where);
}

inline std::vector<Group> Attention::groups(int hidden) const {
  const int query = heads * head_dim;
  const int key = kv_heads * head_dim;
  const Linear q{prefix() + "q", query, hidden, has(biases, "q")};
  Linear k{prefix() + "k", key, hidden, has(biases, "k")};
  Linear v{prefix() + "v", key, hidden, has(biases, "v")};
  const Linear o{prefix() + "o", hidden, query, has(biases, "o")};
  if (reads == Reads::kMemory) {
    k.memory = v.memory = true;
    return {{q}, {k, v}, {o}};
  }
  return {values == Values::kOwn ? Group{q, k, v} : Group{q, k}, {o}};
}

}  // namespace gossamer::spec
