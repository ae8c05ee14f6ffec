#include "engine/decoder.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "common/error.h"

namespace gossamer {
namespace {

// Tokens that go through the blocks together: enough to keep expanded weights busy, few enough for the cache.
constexpr int kChunkTokens = 256;

}  // namespace

const char* const Decoder::kLinearNames[kLinearCount] = {"q", "k", "v", "o", "gate", "up", "down"};

void Decoder::Matrix::shape(int tokens, int columns) {
  const std::int64_t wanted = padded_cols(columns);
  const auto size = static_cast<std::size_t>(tokens) * static_cast<std::size_t>(wanted) + kSpareBytes;
  if (wanted != stride || columns < cols) memory = Buffer<float>();  // the padding moves, and must be zero again
  cols = columns;
  stride = wanted;
  memory.resize(size);
}

std::pair<int, int> Decoder::shape_of(int linear) const {
  const int q = config_.heads * config_.head_dim;
  const int kv = config_.kv_heads * config_.head_dim;
  switch (linear) {
    case kQ:
      return {q, config_.hidden};
    case kK:
    case kV:
      return {kv, config_.hidden};
    case kO:
      return {config_.hidden, q};
    case kDown:
      return {config_.hidden, config_.intermediate};
    default:
      return {config_.intermediate, config_.hidden};
  }
}

std::unique_ptr<Linear> Decoder::make_linear(const std::string& name, std::shared_ptr<const PackedWeight> weight,
                                             int rows, int cols) const {
  require(weight != nullptr, "weight '", name, "' is missing");
  const WeightView& view = weight->view();
  require(view.rows == rows && view.cols == cols, "weight '", name, "' is ", view.rows, " x ", view.cols,
          ", but the config asks for ", rows, " x ", cols);
  return std::make_unique<Linear>(std::move(weight), activations_);
}

Decoder::Decoder(DecoderConfig config, const Weights& weights, const Vectors& vectors, const DecoderOptions& options)
    : config_((config.validate(), std::move(config))),
      activations_(options.activations),
      team_(options.threads),
      cache_(config_.layers, config_.kv_heads, config_.head_dim, options.kv),
      kernels_(&vector_kernels()),
      kv_kernels_(&kv_kernels(options.kv)) {
  if (activations_ != "auto") (void)activation_from_name(activations_);
  std::set<std::string> used;
  const auto weight = [&](const std::string& name, int rows, int cols) {
    const auto found = weights.find(name);
    used.insert(name);
    return make_linear(name, found == weights.end() ? nullptr : found->second, rows, cols);
  };
  const auto vector = [&](const std::string& name, int size, bool optional) {
    const auto found = vectors.find(name);
    used.insert(name);
    if (found == vectors.end()) {
      require(optional, "vector '", name, "' is missing");
      return std::vector<float>();
    }
    require(static_cast<int>(found->second.size()) == size, "vector '", name, "' has ", found->second.size(),
            " elements, but the config asks for ", size);
    return found->second;
  };
  embed_ = weight("embed", config_.vocab, config_.hidden);
  if (!config_.tied) head_ = weight("head", config_.vocab, config_.hidden);
  norm_ = vector("norm", config_.hidden, false);
  for (int i = 0; i < config_.layers; ++i) {
    Block& block = blocks_.emplace_back();
    const std::string prefix = "layers." + std::to_string(i) + ".";
    block.attn_norm = vector(prefix + "attn_norm", config_.hidden, false);
    block.mlp_norm = vector(prefix + "mlp_norm", config_.hidden, false);
    for (int j = 0; j < kLinearCount; ++j) {
      const auto [rows, cols] = shape_of(j);
      const std::string name = prefix + kLinearNames[j];
      block.linears[j] = weight(name, rows, cols);
      block.biases[j] = vector(name + ".bias", rows, true);
      const auto u = weights.find(name + ".low_rank_u");
      if (u == weights.end() || u->second == nullptr) continue;
      const int rank = u->second->view().cols;
      block.low_rank[j] = {weight(name + ".low_rank_u", rows, rank), weight(name + ".low_rank_v", rank, cols)};
    }
  }
  for (const auto& [name, unused] : weights)
    require(used.count(name) != 0, "weight '", name, "' is unknown to this decoder");
  for (const auto& [name, unused] : vectors)
    require(used.count(name) != 0, "vector '", name, "' is unknown to this decoder");
}

void Decoder::set_weight(const std::string& name, std::shared_ptr<const PackedWeight> weight) {
  for (int i = 0; i < config_.layers; ++i) {
    for (int j = 0; j < kLinearCount; ++j) {
      if (name != "layers." + std::to_string(i) + "." + kLinearNames[j]) continue;
      const auto [rows, cols] = shape_of(j);
      blocks_[static_cast<std::size_t>(i)].linears[j] = make_linear(name, std::move(weight), rows, cols);
      return;
    }
  }
  throw InvalidArgument(concat("no block has a weight '", name, "'"));
}

std::int64_t Decoder::weight_bytes() const {
  std::int64_t total = static_cast<std::int64_t>((head_ ? head_ : embed_)->weight().bytes());
  for (const Block& block : blocks_) {
    for (const auto& linear : block.linears) total += static_cast<std::int64_t>(linear->weight().bytes());
    for (const LowRank& branch : block.low_rank)
      if (branch.u) total += static_cast<std::int64_t>(branch.u->weight().bytes() + branch.v->weight().bytes());
  }
  return total;
}

std::vector<std::pair<std::string, std::string>> Decoder::kernels() const {
  std::vector<std::pair<std::string, std::string>> names;
  for (int i = 0; i < config_.layers; ++i) {
    const Block& block = blocks_[static_cast<std::size_t>(i)];
    for (int j = 0; j < kLinearCount; ++j) {
      const std::string name = "layers." + std::to_string(i) + "." + kLinearNames[j];
      names.emplace_back(name, block.linears[j]->kernel_name());
      if (!block.low_rank[j].u) continue;
      names.emplace_back(name + ".low_rank_u", block.low_rank[j].u->kernel_name());
      names.emplace_back(name + ".low_rank_v", block.low_rank[j].v->kernel_name());
    }
  }
  names.emplace_back(config_.tied ? "embed" : "head", (head_ ? head_ : embed_)->kernel_name());
  return names;
}

void Decoder::check_token(std::int32_t token) const {
  require(token >= 0 && token < config_.vocab, "token id ", token, " is outside the vocabulary of ", config_.vocab);
}

void Decoder::reserve_scratch(int tokens) {
  hidden_.shape(tokens, config_.hidden);
  normed_.shape(tokens, config_.hidden);
  delta_.shape(tokens, config_.hidden);
  q_.shape(tokens, config_.heads * config_.head_dim);
  mixed_.shape(tokens, config_.heads * config_.head_dim);
  k_.shape(tokens, config_.kv_heads * config_.head_dim);
  v_.shape(tokens, config_.kv_heads * config_.head_dim);
  gate_.shape(tokens, config_.intermediate);
  up_.shape(tokens, config_.intermediate);
}

// Angles are taken as float products, as the reference implementations do.
void Decoder::set_angles(const std::vector<TokenPlace>& places) {
  const std::size_t half = config_.inv_freq.size();
  cosines_.resize(places.size() * half);
  sines_.resize(places.size() * half);
  for (std::size_t t = 0; t < places.size(); ++t) {
    for (std::size_t j = 0; j < half; ++j) {
      const float angle = static_cast<float>(places[t].position) * config_.inv_freq[j];
      cosines_[t * half + j] = std::cos(angle) * config_.rope_scale;
      sines_[t * half + j] = std::sin(angle) * config_.rope_scale;
    }
  }
}

void Decoder::norm_rows(const float* x, std::int64_t stride, const std::vector<float>& weight, Matrix& out,
                        int tokens) {
  team_.parallel_for(tokens, 4, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t)
      kernels_->rms_norm(x + t * stride, weight.data(), config_.hidden, config_.norm_eps, out.row(t));
  });
}

void Decoder::add_rows(float* x, std::int64_t stride, Matrix& y, int tokens) {
  team_.parallel_for(tokens, 4, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t) kernels_->add(x + t * stride, y.row(t), y.cols);
  });
}

void Decoder::apply(Block& block, std::initializer_list<std::pair<LinearIndex, Matrix*>> outputs, const Matrix& x,
                    int tokens) {
  std::vector<LinearJob> jobs;
  for (const auto& [index, out] : outputs) {
    jobs.push_back({block.linears[index].get(), out->memory.data(), out->stride});
    if (!block.low_rank[index].v) continue;
    Matrix& inner = inner_[index];
    inner.shape(tokens, block.low_rank[index].v->rows());
    jobs.push_back({block.low_rank[index].v.get(), inner.memory.data(), inner.stride});
  }
  run_linears(team_, jobs, x.rows(tokens), inputs_);
  for (const auto& [index, out] : outputs) {
    if (block.low_rank[index].u) {
      lifted_.shape(tokens, out->cols);
      run_linears(team_, {{block.low_rank[index].u.get(), lifted_.memory.data(), lifted_.stride}},
                  inner_[index].rows(tokens), inputs_);
      add_rows(out->memory.data(), out->stride, lifted_, tokens);
    }
    const std::vector<float>& bias = block.biases[index];
    if (bias.empty()) continue;
    for (int t = 0; t < tokens; ++t) kernels_->add(out->row(t), bias.data(), static_cast<std::int64_t>(bias.size()));
  }
}

void Decoder::capture(Captures* captures, const Block& block, LinearIndex linear, Matrix& x, int tokens) const {
  if (captures == nullptr) return;
  const auto found = captures->find(kLinearNames[linear]);
  if (found == captures->end()) return;
  const int cols = block.linears[linear]->cols();
  for (int t = 0; t < tokens; ++t) found->second.insert(found->second.end(), x.row(t), x.row(t) + cols);
}

void Decoder::run_block(int index, float* hidden, std::int64_t stride, const std::vector<TokenPlace>& places,
                        KvCache& cache, int cache_layer, Captures* captures, int last) {
  Block& block = blocks_[static_cast<std::size_t>(index)];
  const int tokens = static_cast<int>(places.size());
  const int dim = config_.head_dim;
  const auto half = static_cast<int>(config_.inv_freq.size());

  norm_rows(hidden, stride, block.attn_norm, normed_, tokens);
  for (const LinearIndex linear : {kQ, kK, kV}) capture(captures, block, linear, normed_, tokens);
  if (last <= kV) return;
  apply(block, {{kQ, &q_}, {kK, &k_}, {kV, &v_}}, normed_, tokens);

  const std::int64_t layer_offset = cache.layer_offset(cache_layer);
  team_.parallel_for(tokens, 4, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t) {
      const float* cosines = cosines_.data() + t * half;
      const float* sines = sines_.data() + t * half;
      kernels_->rope(q_.row(t), config_.heads, dim, half, cosines, sines);
      kernels_->rope(k_.row(t), config_.kv_heads, dim, half, cosines, sines);
      const TokenPlace& place = places[static_cast<std::size_t>(t)];
      std::uint8_t* page = const_cast<std::uint8_t*>(place.pages[place.position / kPageTokens]) + layer_offset;
      const int slot = place.position % kPageTokens;
      const std::int64_t k_bytes =
          static_cast<std::int64_t>(dim) * kPageTokens * (cache.type() == KvType::kF32 ? 4 : 2);
      for (int h = 0; h < config_.kv_heads; ++h, page += cache.head_bytes()) {
        kv_kernels_->store_k(k_.row(t) + h * dim, dim, page, slot);
        kv_kernels_->store_v(v_.row(t) + h * dim, dim, cache.padded_dim(), page + k_bytes, slot);
      }
    }
  });
  const AttentionShape shape{config_.heads, config_.kv_heads, dim, cache.padded_dim()};
  attention_.run(team_, *kv_kernels_, shape, places, layer_offset, cache.head_bytes(), q_.memory.data(), q_.stride,
                 mixed_.memory.data(), mixed_.stride);

  capture(captures, block, kO, mixed_, tokens);
  if (last <= kO) return;
  apply(block, {{kO, &delta_}}, mixed_, tokens);
  add_rows(hidden, stride, delta_, tokens);

  norm_rows(hidden, stride, block.mlp_norm, normed_, tokens);
  for (const LinearIndex linear : {kGate, kUp}) capture(captures, block, linear, normed_, tokens);
  if (last <= kUp) return;
  apply(block, {{kGate, &gate_}, {kUp, &up_}}, normed_, tokens);
  team_.parallel_for(tokens, 4, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t) kernels_->silu_mul(gate_.row(t), up_.row(t), config_.intermediate);
  });
  capture(captures, block, kDown, gate_, tokens);
  if (last <= kDown) return;
  apply(block, {{kDown, &delta_}}, gate_, tokens);
  add_rows(hidden, stride, delta_, tokens);
}

void Decoder::logits(const float* hidden, std::int64_t stride, const std::vector<int>& rows, float* out) {
  const int tokens = static_cast<int>(rows.size());
  for (int i = 0; i < tokens; ++i)
    kernels_->rms_norm(hidden + rows[static_cast<std::size_t>(i)] * stride, norm_.data(), config_.hidden,
                       config_.norm_eps, normed_.row(i));
  run_linears(team_, {{(head_ ? head_ : embed_).get(), out, config_.vocab}}, normed_.rows(tokens), inputs_);
}

std::vector<float> Decoder::step(const std::vector<StepEntry>& entries, bool all_logits, const Poll& poll) {
  struct Token {
    std::int32_t id;
    KvCache::Sequence* sequence;
    int position;
    bool wanted;
  };
  std::set<std::int64_t> seen;
  std::size_t total = 0;
  std::size_t wanted = 0;
  for (const StepEntry& entry : entries) {
    require(entry.sequence >= 0, "sequence ids must not be negative, got ", entry.sequence);
    require(seen.insert(entry.sequence).second, "sequence ", entry.sequence, " appears twice in one step");
    require(entry.count > 0, "sequence ", entry.sequence, " got no tokens");
    const std::int64_t end = static_cast<std::int64_t>(cache_.length(entry.sequence)) + entry.count;
    require(end <= config_.context, "sequence ", entry.sequence, " would grow to ", end,
            " tokens, beyond the context of ", config_.context);
    for (int i = 0; i < entry.count; ++i) check_token(entry.tokens[i]);
    total += static_cast<std::size_t>(entry.count);
    wanted += all_logits ? static_cast<std::size_t>(entry.count) : 1;
  }
  std::vector<Token> tokens;
  tokens.reserve(total);
  std::vector<float> out(wanted * static_cast<std::size_t>(config_.vocab));
  float* next = out.data();
  try {
    for (const StepEntry& entry : entries) {
      KvCache::Sequence& sequence = cache_.sequence(entry.sequence);
      cache_.reserve(sequence, sequence.length + entry.count);
      for (int i = 0; i < entry.count; ++i)
        tokens.push_back({entry.tokens[i], &sequence, sequence.length + i, all_logits || i + 1 == entry.count});
    }
    for (std::size_t first = 0; first < tokens.size(); first += kChunkTokens) {
      const std::size_t count = std::min<std::size_t>(kChunkTokens, tokens.size() - first);
      reserve_scratch(static_cast<int>(count));
      std::vector<TokenPlace> places;
      std::vector<int> rows;
      for (std::size_t i = 0; i < count; ++i) {
        const Token& token = tokens[first + i];
        places.push_back({token.sequence->pages.data(), token.position});
        if (token.wanted) rows.push_back(static_cast<int>(i));
      }
      team_.parallel_for(static_cast<std::int64_t>(count), 4, [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t i = begin; i < end; ++i)
          unpack_row(embed_->weight().view(), tokens[first + static_cast<std::size_t>(i)].id, hidden_.row(i));
      });
      set_angles(places);
      for (int layer = 0; layer < config_.layers; ++layer) {
        poll();
        run_block(layer, hidden_.memory.data(), hidden_.stride, places, cache_, layer, nullptr);
      }
      if (!rows.empty()) {
        poll();
        logits(hidden_.memory.data(), hidden_.stride, rows, next);
        next += rows.size() * static_cast<std::size_t>(config_.vocab);
      }
    }
  } catch (...) {
    for (const StepEntry& entry : entries) {
      if (cache_.length(entry.sequence) == 0)
        cache_.free(entry.sequence);
      else
        cache_.trim(cache_.sequence(entry.sequence));
    }
    throw;
  }
  for (const StepEntry& entry : entries) {
    KvCache::Sequence& sequence = cache_.sequence(entry.sequence);
    KvCache::commit(sequence, sequence.length + entry.count);
  }
  return out;
}

std::vector<float> Decoder::embed(const std::int32_t* tokens, int n) const {
  std::vector<float> out(static_cast<std::size_t>(n) * static_cast<std::size_t>(config_.hidden));
  for (int i = 0; i < n; ++i) {
    check_token(tokens[i]);
    unpack_row(embed_->weight().view(), tokens[i], out.data() + static_cast<std::int64_t>(i) * config_.hidden);
  }
  return out;
}

void Decoder::forward_block(int index, float* hidden, int tokens, int sequence_length, Captures& captures, bool whole,
                            const Poll& poll) {
  require(index >= 0 && index < config_.layers, "block must be between 0 and ", config_.layers - 1, ", got ", index);
  require(tokens > 0, "forward_block got no tokens");
  const int length = sequence_length == 0 ? tokens : sequence_length;
  require(length > 0 && tokens % length == 0, "tokens (", tokens, ") must be a multiple of sequence_length (", length,
          ")");
  require(length <= config_.context, "sequences of ", length, " tokens are beyond the context of ", config_.context);
  for (const auto& [name, unused] : captures)
    require(std::find(std::begin(kLinearNames), std::end(kLinearNames), name) != std::end(kLinearNames),
            "no linear is called '", name, "'; capture takes q, k, v, o, gate, up, down");
  int last = whole ? kLinearCount : 0;
  for (int j = 0; j < kLinearCount; ++j)
    if (captures.count(kLinearNames[j]) != 0) last = std::max(last, j);
  KvCache cache(1, config_.kv_heads, config_.head_dim, cache_.type());
  for (int start = 0; start < tokens; start += length) {
    KvCache::Sequence& sequence = cache.sequence(0);
    cache.reserve(sequence, length);
    for (int first = 0; first < length; first += kChunkTokens) {
      poll();
      const int count = std::min(kChunkTokens, length - first);
      reserve_scratch(count);
      std::vector<TokenPlace> places;
      for (int i = 0; i < count; ++i) places.push_back({sequence.pages.data(), first + i});
      set_angles(places);
      run_block(index, hidden + static_cast<std::int64_t>(start + first) * config_.hidden, config_.hidden, places,
                cache, 0, &captures, last);
    }
  }
}

std::vector<float> Decoder::head(const float* hidden, int tokens, const Poll& poll) {
  std::vector<float> out(static_cast<std::size_t>(tokens) * static_cast<std::size_t>(config_.vocab));
  for (int first = 0; first < tokens; first += kChunkTokens) {
    poll();
    const int count = std::min(kChunkTokens, tokens - first);
    reserve_scratch(count);
    std::vector<int> rows(static_cast<std::size_t>(count));
    for (int i = 0; i < count; ++i) rows[static_cast<std::size_t>(i)] = i;
    logits(hidden + static_cast<std::int64_t>(first) * config_.hidden, config_.hidden, rows,
           out.data() + static_cast<std::int64_t>(first) * config_.vocab);
  }
  return out;
}

}  // namespace gossamer
