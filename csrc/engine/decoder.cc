#include "engine/decoder.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "common/error.h"
#include "ops/tokens.h"
#include "ops/top_k.h"

namespace gossamer {
namespace {

// Rows of logits that are in memory at once where only the largest are asked for.
constexpr int kTopRows = 16;

// Before the names of what belongs to an encoder.
constexpr std::string_view kEncoder = "encoder.";

// Those of an encoder, by the names that it has for them itself; they are no longer among all.
template <class Named>
Named taken_out(Named& all) {
  Named found;
  for (auto it = all.lower_bound(std::string(kEncoder)); it != all.end() && it->first.starts_with(kEncoder);
       it = all.erase(it))
    found.emplace(it->first.substr(kEncoder.size()), it->second);
  return found;
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace

Decoder::Decoder(const spec::Transformer& spec, const PackedWeights& weights, const Vectors& vectors,
                 const std::string& activations, std::shared_ptr<ThreadTeam> team, std::shared_ptr<KvCache> cache,
                 bool draft)
    : spec_((spec::validate(spec), spec)),
      activations_(activations),
      team_(std::move(team)),
      cache_(std::move(cache)),
      vectors_(vector_kernels()),
      kv_kernels_(kv_kernels(cache_->type())) {
  require(cache_->shapes() == kv_shapes(spec_), "the cache was made for layers of other shapes");
  PackedWeights own_weights = weights;
  Vectors own_vectors = vectors;
  if (spec_.encoder) {
    PackedWeights inner = taken_out(own_weights);
    if (const auto shared = weights.find("embed"); spec_.encoder->embedding.shared && shared != weights.end())
      inner.insert(*shared);
    const auto keep = [&](spec::Reads of, const spec::Transformer& described) {
      return std::make_unique<KvCache>(kv_shapes(described, of), cache_->type(), cache_->limit());
    };
    spec::Transformer alone = *spec_.encoder;
    alone.embedding.shared = false;
    encoder_ = std::make_unique<Decoder>(alone, inner, taken_out(own_vectors), activations_, team_,
                                         keep(spec::Reads::kSelf, alone));
    memory_ = keep(spec::Reads::kMemory, spec_);
    memory_->count_with(*cache_);
    cache_->count_with(*memory_);
  }
  Weights taken(own_weights, own_vectors, activations_);
  Build build{taken, workspace_, vectors_, spec_.hidden};
  hidden_ = &workspace_.matrix("hidden", spec_.hidden);
  embedding_ = std::make_unique<EmbeddingLayer>(spec_, build);
  stack_ = std::make_unique<Stack>(spec_.stack, spec_.context, build);
  if (spec_.head) head_ = std::make_unique<HeadLayer>(spec_, *embedding_, stack_->norm(), build, draft);
  taken.require_all_taken();
}

void Decoder::set_weight(const std::string& name, std::shared_ptr<const PackedWeight> weight) {
  if (encoder_ && name.starts_with(kEncoder)) {
    encoder_->set_weight(name.substr(kEncoder.size()), std::move(weight));
    return;
  }
  Projection* found = nullptr;
  for (Block& block : stack_->blocks())
    if (found == nullptr) found = block.find(name);
  require(found != nullptr, "no block has a weight '", name, "'");
  found->set_weight(std::move(weight), activations_);
}

std::int64_t Decoder::weight_bytes() const {
  double total = 0;
  visit([&](const std::string&, const Linear& linear, double share) {
    total += share * static_cast<double>(linear.weight().bytes());
  });
  return std::llround(total);
}

std::vector<std::pair<std::string, std::string>> Decoder::kernels() const {
  std::vector<std::pair<std::string, std::string>> names;
  visit([&](const std::string& name, const Linear& linear, double) { names.emplace_back(name, linear.kernel_name()); });
  return names;
}

void Decoder::visit(const std::function<void(const std::string&, const Linear&, double)>& f) const {
  const auto whole = [&](const std::string& name, const Linear& linear) { f(name, linear, 1); };
  embedding_->visit(whole);
  for (const Block& block : stack_->blocks())
    block.visit([&](const Projection& projection) {
      projection.visit([&](const std::string& name, const Linear& linear) { f(name, linear, projection.share()); });
    });
  if (head_) head_->visit(whole);
}

const HeadLayer& Decoder::way_out() const {
  require(head_ != nullptr, "an encoder has no head, and gives no logits");
  return *head_;
}

int Decoder::add_adapter(const PackedWeights& weights, const Vectors& vectors) {
  require(!weights.empty() || !vectors.empty(), "the adapter is empty");
  Weights taken(weights, vectors, activations_);
  const int adapter = adapters_.next();
  std::int64_t bytes = 0;
  std::vector<std::pair<Projection*, std::vector<Part>>> found;
  for_projections([&](Projection& projection) {
    found.emplace_back(&projection, projection.parts_of(adapter, taken, workspace_));
    for (const Part& part : found.back().second) bytes += part.bytes();
  });
  taken.require_all_taken();
  for (auto& [projection, parts] : found) projection->add(std::move(parts));
  adapters_.add(adapter, bytes);
  return adapter;
}

void Decoder::remove_adapter(int adapter) {
  adapters_.remove(adapter);
  for_projections([&](Projection& projection) { projection.remove(adapter); });
}

void Decoder::choose(std::int64_t sequence, Mix mix) {
  const int held = cache_->length(sequence);
  require(held == 0, "sequence ", sequence, " holds ", held, " tokens of another choice of adapters");
  require(!memory_ || memory_->length(sequence) == 0, "sequence ", sequence,
          " remembers an input by another choice of adapters");
  adapters_.choose(sequence, std::move(mix));
}

void Decoder::fork(std::int64_t from, std::int64_t to, int length) {
  require(!memory_ || memory_->length(to) == 0, "cannot fork into sequence ", to, ", which remembers an input");
  cache_->fork(from, to, length);
  if (memory_ && memory_->length(from) != 0) memory_->share(from, to);
  adapters_.fork(from, to);
}

void Decoder::free(std::int64_t sequence) {
  cache_->free(sequence);
  if (memory_) memory_->free(sequence);
  adapters_.forget(sequence);
}

void Decoder::for_projections(const std::function<void(Projection&)>& f) {
  for (Block& block : stack_->blocks()) block.visit([&](Projection& projection) { f(projection); });
}

Step Decoder::make_step(KvCache& cache, const Chunk& chunk) {
  workspace_.begin(*team_, chunk.positions);
  Step step{*team_, vectors_, kv_kernels_, cache, chunk, inputs_, attention_};
  step.memory = memory_.get();
  return step;
}

void Decoder::enter(const float* hidden, int tokens) {
  for_tokens(*team_, tokens,
             [&](std::int64_t t) { std::copy_n(hidden + t * spec_.hidden, spec_.hidden, hidden_->row(t)); });
}

void Decoder::run_head(Step& step, ResidualStream& stream, const StepOptions& options, StepResult& result,
                       std::int64_t done) {
  const std::vector<int>& wanted = step.chunk.wanted;
  const auto count = static_cast<int>(wanted.size());
  const std::int64_t vocab = logits();
  if (options.top_k == 0) {
    float* out = options.into != nullptr ? options.into : result.values.data();
    way_out().run(step, stream, wanted.data(), count, out + done * vocab);
    return;
  }
  for (int first = 0; first < count; first += kTopRows) {
    const int rows = std::min(kTopRows, count - first);
    const std::int64_t at = (done + first) * options.top_k;
    rows_.resize(static_cast<std::size_t>(rows * vocab));
    way_out().run(step, stream, wanted.data() + first, rows, rows_.data());
    top_k(*team_, rows_.data(), rows, vocab, options.top_k, result.ids.data() + at, result.values.data() + at);
  }
}

StepResult Decoder::step(const std::vector<StepEntry>& entries, const StepOptions& options, const Poll& poll) {
  (void)way_out();
  Batch batch(entries, options.all_logits, spec_.vocab, spec_.context, *cache_, adapters_, memory_.get());
  require(options.top_k >= 0 && options.top_k <= logits(), "top_k must be between 0 and the vocabulary's ", logits(),
          ", got ", options.top_k);
  require(options.into == nullptr || options.into_rows == batch.wanted(), "into has ", options.into_rows,
          " rows, but the step gives ", batch.wanted());
  StepResult result;
  result.rows = batch.wanted();
  const auto rows = static_cast<std::size_t>(result.rows);
  const auto width = static_cast<std::size_t>(options.top_k == 0 ? logits() : options.top_k);
  if (options.into == nullptr) result.values.resize(rows * width);
  result.ids.resize(rows * static_cast<std::size_t>(options.top_k));
  batch.reserve();
  std::int64_t done = 0;
  while (batch.next(chunk_)) {
    Step step = make_step(*cache_, chunk_);
    embedding_->run(step, *hidden_);
    ResidualStream stream(step, hidden_->data(), hidden_->stride(), spec_.hidden);
    stack_->run(step, stream, poll);
    if (chunk_.wanted.empty()) continue;
    poll();
    run_head(step, stream, options, result, done);
    done += static_cast<std::int64_t>(chunk_.wanted.size());
  }
  batch.commit();
  return result;
}

std::vector<float> Decoder::embed(const std::int32_t* tokens, int n, int sequence_length) {
  require(!embedding_->reads_frames(), "what comes in are frames, and no tokens");
  const int length = sequence_length == 0 ? std::max(n, 1) : sequence_length;
  require(length > 0 && n % length == 0, "tokens (", n, ") must be a multiple of sequence_length (", length, ")");
  require(length <= spec_.context, "sequences of ", length, " tokens are beyond the context of ", spec_.context);
  std::vector<float> out(static_cast<std::size_t>(n) * static_cast<std::size_t>(spec_.hidden));
  for (int i = 0; i < n; ++i) check_token(tokens[i], spec_.vocab);
  for (int first = 0; first < n; first += kChunkTokens) {
    chunk_.clear(0);
    for (int i = first; i < std::min(n, first + kChunkTokens); ++i) {
      chunk_.ids.push_back(tokens[i]);
      chunk_.positions.push_back(i % length);
    }
    Step step = make_step(*cache_, chunk_);
    embedding_->run(step, *hidden_);
    for (int t = 0; t < step.tokens(); ++t)
      std::copy_n(hidden_->row(t), spec_.hidden, out.data() + static_cast<std::int64_t>(first + t) * spec_.hidden);
  }
  return out;
}

void Decoder::forward_block(int index, float* hidden, int tokens, int sequence_length, const MemoryStates& memory,
                            Captures& captures, bool whole, const Poll& poll) {
  require(index >= 0 && index < stack_->layers(), "block must be between 0 and ", stack_->layers() - 1, ", got ",
          index);
  require(tokens > 0, "forward_block got no tokens");
  const int length = sequence_length == 0 ? tokens : sequence_length;
  require(length > 0 && tokens % length == 0, "tokens (", tokens, ") must be a multiple of sequence_length (", length,
          ")");
  require(length <= spec_.context, "sequences of ", length, " tokens are beyond the context of ", spec_.context);
  Block& block = (*stack_)[index];
  const std::vector<std::string> known = block.captured();
  for (const auto& [name, unused] : captures)
    require(std::find(known.begin(), known.end(), name) != known.end(), "no linear is called '", name,
            "'; capture takes ", joined(known));
  const int most = block.causal() ? kChunkTokens : length;  // those that see tokens behind them go together
  KvCache cache(block.kv_shapes(), cache_->type());
  const bool reads = !block.memory_shapes().empty();
  require(reads || memory.rows == nullptr, "the block reads no memory, but there is one");
  require(!reads || (memory.count > 0 && memory.count % (tokens / length) == 0),
          "memory must be as many states for each of ", tokens / length, " sequences, got ", memory.count);
  const int remembered = memory.count / (tokens / length);
  KvCache kept(block.memory_shapes(), cache_->type());
  Probe probe(captures, whole, std::max(tokens, memory.count));
  for (int start = 0; start < tokens; start += length) {
    KvCache::Sequence& sequence = cache.sequence(0);
    cache.reserve(sequence, length);
    KvCache::Sequence& read = kept.sequence(0);
    if (reads) kept.reserve(read, remembered);
    for (int first = 0; reads && first < remembered; first += kChunkTokens) {
      chunk_.clear(kept.pools());
      for (int i = first; i < std::min(remembered, first + kChunkTokens); ++i) chunk_.push(read, i, {}, remembered);
      Step step = make_step(kept, chunk_);
      step.probe = &probe;
      step.first_kv_layer = block.first_layers().memory;
      probe.begin();
      enter(memory.rows + std::int64_t{start / length * remembered + first} * spec_.hidden, step.tokens());
      (void)block.remember(step, *hidden_);
    }
    kept.commit(read, remembered);
    for (int first = 0; first < length; first += most) {
      poll();
      chunk_.clear(cache.pools(), kept.pools());
      for (int i = first; i < std::min(length, first + most); ++i) chunk_.push(sequence, i, {}, length, &read);
      Step step = make_step(cache, chunk_);
      step.probe = &probe;
      step.memory = &kept;
      step.first_kv_layer = block.first_layers().own;
      step.first_memory_layer = block.first_layers().memory;
      probe.begin();
      ResidualStream stream(step, hidden + static_cast<std::int64_t>(start + first) * spec_.hidden, spec_.hidden,
                            spec_.hidden);
      if (block.run(step, stream)) stream.settle();
    }
  }
}

std::vector<float> Decoder::head(const float* hidden, int tokens, const Poll& poll) {
  (void)way_out();
  std::vector<float> out(static_cast<std::size_t>(tokens) * static_cast<std::size_t>(logits()));
  for (std::int64_t first = 0; first < tokens; first += kChunkTokens) {
    poll();
    chunk_.clear(0);
    for (int i = 0; i < std::min<std::int64_t>(kChunkTokens, tokens - first); ++i) {
      chunk_.positions.push_back(0);
      chunk_.wanted.push_back(i);
    }
    Step step = make_step(*cache_, chunk_);
    enter(hidden + first * spec_.hidden, step.tokens());
    ResidualStream stream(step, hidden_->data(), hidden_->stride(), spec_.hidden);
    head_->run(step, stream, chunk_.wanted.data(), step.tokens(), out.data() + first * logits());
  }
  return out;
}

}  // namespace gossamer
