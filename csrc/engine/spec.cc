#include "engine/spec.h"

#include <algorithm>
#include <cmath>

#include "common/error.h"

namespace gossamer::spec {
namespace {

constexpr int kLargest = 1 << 24;  // so that sizes multiply without overflow
constexpr std::size_t kMostLayers = 4096;
constexpr int kMostExperts = 4096;

// What is checked, by the name that errors give it.
struct Where {
  std::string path;

  Where operator/(const std::string& field) const { return {path + "." + field}; }
  Where operator[](std::size_t i) const { return {path + "[" + std::to_string(i) + "]"}; }

  template <class... Parts>
  void must(bool fair, const Parts&... parts) const {
    require(fair, path, parts...);
  }
  void size(const char* field, int value) const {
    must(value > 0 && value <= kLargest, ".", field, " must be between 1 and ", kLargest, ", got ", value);
  }
  void size(const char* field, const std::optional<int>& value) const {
    if (value) size(field, *value);
  }
  void above_zero(const char* field, float value) const {
    must(value > 0 && std::isfinite(value), ".", field, " must be finite and above 0, got ", value);
  }
  void above_zero(const char* field, const std::optional<float>& value) const {
    if (value) above_zero(field, *value);
  }
};

bool has(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

void check_biases(const std::vector<std::string>& biases, const std::vector<Group>& groups, const Where& where) {
  std::vector<std::string> known;
  for (const Group& group : groups)
    for (const Linear& linear : group) known.push_back(linear.name);
  for (std::size_t i = 0; i < biases.size(); ++i) {
    where.must(has(known, biases[i]), ".biases: no linear is called '", biases[i], "'");
    where.must(std::count(biases.begin(), biases.end(), biases[i]) == 1, ".biases names '", biases[i], "' twice");
  }
}

void check(const Norm& norm, const Where& where) {
  where.must(norm.eps >= 0 && std::isfinite(norm.eps), ".eps must be finite and not negative, got ", norm.eps);
  where.must(norm.kind->biased || !norm.bias, ".bias must be false for this kind");
  where.must(norm.weight || !norm.bias, ".bias must be false without a weight");
}

void check(const std::optional<Norm>& norm, const Where& where) {
  if (norm) check(*norm, where);
}

void check(const Rope& rope, const Attention& attention, const Where& where) {
  where.must(rope.inv_freq.size() <= static_cast<std::size_t>(attention.head_dim / 2), ".inv_freq has ",
             rope.inv_freq.size(), " frequencies, more than half of head_dim (", attention.head_dim, ")");
  for (const float f : rope.inv_freq) where.must(std::isfinite(f), ".inv_freq holds a value that is not finite");
  where.above_zero("scale", rope.scale);
}

void check(const Alibi& alibi, const Attention& attention, const Where& where) {
  where.must(alibi.slopes.size() == static_cast<std::size_t>(attention.heads), ".slopes must be ", attention.heads,
             " numbers, one a head, got ", alibi.slopes.size());
  for (const float slope : alibi.slopes) where.must(std::isfinite(slope), ".slopes holds a value that is not finite");
}

void check(const RelativeBias& bias, const Attention& attention, const Where& where) {
  where.size("buckets", bias.buckets);
  for (const std::vector<int>* numbers : {&bias.back, &bias.ahead})
    for (const int bucket : *numbers)
      where.must(bucket >= 0 && bucket < bias.buckets, " has bucket ", bucket, ", but ", bias.buckets, " buckets");
  where.must(!bias.back.empty(), ".back is empty");
  where.must(bias.ahead.empty() == attention.causal, ".ahead must be empty where attention is causal, and only there");
}

void check(const Attention& attention, int hidden, const Where& where) {
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

void check(const Mlp& mlp, int hidden, const Where& where) {
  where.size("width", mlp.width);
  check_biases(mlp.biases, mlp.groups(hidden), where);
  where.above_zero("limit", mlp.limit);
  where.above_zero("alpha", mlp.alpha);
  where.must(std::isfinite(mlp.shift), ".shift must be finite, got ", mlp.shift);
  where.must(mlp.plain() || (mlp.gated && mlp.activation->clamped != nullptr),
             ": limit, alpha and shift are for a gate with silu");
}

void check(const Experts& experts, int hidden, const Where& where) {
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

void check(const Learned& learned, int, int context, const Where& where) {
  where.size("count", learned.count);
  where.must(learned.offset >= 0 && learned.offset < learned.count, ".offset must be below ", learned.count, ", got ",
             learned.offset);
  where.must(context <= learned.count - learned.offset, " has ", learned.count - learned.offset,
             " positions, fewer than the context of ", context);
}

void check(const Sinusoids& sinusoids, int hidden, int, const Where& where) {
  where.must(sinusoids.frequencies.size() * 2 == static_cast<std::size_t>(hidden), ".frequencies must be ", hidden / 2,
             " numbers, got ", sinusoids.frequencies.size());
  for (const float f : sinusoids.frequencies)
    where.must(std::isfinite(f), ".frequencies holds a value that is not finite");
  where.must(sinusoids.offset >= 0 && sinusoids.offset <= kLargest, ".offset is out of range: ", sinusoids.offset);
}

void check(const Embedding& embedding, int hidden, int context, const Where& where) {
  if (embedding.positions)
    std::visit([&](const auto& part) { check(part, hidden, context, where / "positions"); }, *embedding.positions);
  if (embedding.mel) {
    where.size("mel.bins", embedding.mel->bins);
    where.must(!embedding.project && !embedding.shared && embedding.types == 0 && embedding.scale == 1,
               ".mel goes with neither project, shared, types nor scale");
  }
  where.must(embedding.types >= 0 && embedding.types <= kLargest, ".types is out of range: ", embedding.types);
  where.above_zero("scale", embedding.scale);
  where.size("project", embedding.project);
  check(embedding.norm, where / "norm");
}

void check(const Head& head, const Embedding& embedding, const Where& where) {
  where.above_zero("scale", head.scale);
  where.above_zero("softcap", head.softcap);
  where.size("project", head.project);
  where.must(!head.tied || head.project == embedding.project, ".project must be the embedding's where it is tied");
}

void check(const Block& block, int hidden, const Where& where) {
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

}  // namespace

std::vector<Group> Attention::groups(int hidden) const {
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

std::vector<Group> Mlp::groups(int hidden) const {
  Group inputs;
  if (gated) inputs.push_back({"gate", width, hidden, has(biases, "gate")});
  inputs.push_back({"up", width, hidden, has(biases, "up")});
  return {inputs, {{"down", hidden, width, has(biases, "down")}}};
}

std::vector<Group> Experts::groups(int hidden) const {
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

std::string name_of(const Mixer& mixer) {
  return std::visit([](const auto& part) { return std::string(part.name()); }, mixer);
}

namespace {

// Attentions of all kinds of blocks.
std::vector<const Attention*> attentions(const Stack& stack) {
  std::vector<const Attention*> found;
  for (const Block& block : stack.kinds)
    for (const Branch& branch : block.branches)
      if (const auto* attention = std::get_if<Attention>(&branch.mixer)) found.push_back(attention);
  return found;
}

void check(const Transformer& transformer, const Where& where) {
  where.size("hidden", transformer.hidden);
  where.size("vocab", transformer.vocab);
  where.size("context", transformer.context);
  check(transformer.embedding, transformer.hidden, transformer.context, where / "embedding");
  if (transformer.head) check(*transformer.head, transformer.embedding, where / "head");
  const Stack& stack = transformer.stack;
  const Where mine = where / "stack";
  for (std::size_t i = 0; i < stack.kinds.size(); ++i) check(stack.kinds[i], transformer.hidden, (mine / "kinds")[i]);
  mine.must(!stack.layers.empty() && stack.layers.size() <= kMostLayers, ".layers must be from 1 to ", kMostLayers,
            " numbers, got ", stack.layers.size());
  for (std::size_t i = 0; i < stack.layers.size(); ++i)
    (mine / "layers")[i].must(stack.layers[i] >= 0 && stack.layers[i] < static_cast<int>(stack.kinds.size()),
                              " must be a number of the ", stack.kinds.size(), " kinds, got ", stack.layers[i]);
  check(stack.norm, mine / "norm");
  bool reads = false;
  const Attention* shared = nullptr;
  for (const Attention* attention : attentions(stack)) {
    reads = reads || attention->reads == Reads::kMemory;
    mine.must(attention->causal || attention->reads == Reads::kMemory || !transformer.head,
              " must be causal in a model with a head");
    if (attention->relative_bias() == nullptr) continue;
    if (shared == nullptr) shared = attention;
    mine.must(attention->heads == shared->heads && *attention->relative_bias() == *shared->relative_bias(),
              " must have one relative bias for all attentions, and so many heads");
  }
  where.must(!transformer.embedding.mel || !transformer.head, ".embedding.mel is for an encoder");
  where.must(reads == (transformer.encoder != nullptr),
             ".encoder must be there where a memory is read, and only there");
  where.must(!transformer.embedding.shared || where.path != "transformer", ".embedding.shared is for an encoder");
  if (!transformer.encoder) return;
  const Transformer& encoder = *transformer.encoder;
  const Where inner = where / "encoder";
  inner.must(!encoder.head, ".head must be null");
  inner.must(!encoder.encoder, ".encoder must be null");
  inner.must(encoder.hidden == transformer.hidden, ".hidden must be ", transformer.hidden, ", got ", encoder.hidden);
  inner.must(!encoder.embedding.shared ||
                 (encoder.vocab == transformer.vocab && encoder.embedding.project == transformer.embedding.project),
             ".embedding must have the shape of the one that it shares");
  check(encoder, inner);
}

}  // namespace

void validate(const Transformer& transformer) { check(transformer, Where{"transformer"}); }

const Attention* relative(const Stack& stack) {
  for (const Attention* attention : attentions(stack))
    if (attention->relative_bias() != nullptr) return attention;
  return nullptr;
}

bool causal(const Block& block) {
  for (const Branch& branch : block.branches) {
    const auto* attention = std::get_if<Attention>(&branch.mixer);
    if (attention != nullptr && attention->reads == Reads::kSelf && !attention->causal) return false;
  }
  return true;
}

}  // namespace gossamer::spec
