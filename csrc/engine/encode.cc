// What a model gives of inputs that stand alone, and what a decoder keeps of them.
#include <algorithm>
#include <set>

#include "common/error.h"
#include "engine/decoder.h"
#include "ops/tokens.h"

namespace gossamer {
namespace {

// Sequences that live no longer than this, unless they are kept.
class Begun {
 public:
  explicit Begun(KvCache& cache) : cache_(cache) {}
  ~Begun() {
    for (const std::int64_t id : ids_) cache_.free(id);
  }
  Begun(const Begun&) = delete;
  Begun& operator=(const Begun&) = delete;

  KvCache::Sequence& begin(std::int64_t id) {
    ids_.push_back(id);
    return cache_.sequence(id);
  }
  void keep() { ids_.clear(); }

 private:
  KvCache& cache_;
  std::vector<std::int64_t> ids_;
};

}  // namespace

std::vector<float> Decoder::encode(const std::vector<EncodeInput>& inputs, const Mix& mix, const Poll& poll) {
  if (encoder_) {
    require(mix.empty(), "adapters are of the decoder, and not of the encoder that it reads");
    return encoder_->encode(inputs, mix, poll);
  }
  const Mix used = adapters_.checked(mix);
  std::int64_t total = 0;
  for (const EncodeInput& input : inputs) {
    check(input);
    total += input.rows();
  }
  std::vector<float> out(static_cast<std::size_t>(total * spec_.hidden));
  float* rows = out.data();
  for (std::size_t first = 0; first < inputs.size();) {
    Begun passing(*cache_);
    chunk_.clear(cache_->pools());
    // Whole inputs, since their tokens may see one another.
    const auto fits = [&](const EncodeInput& input) {
      return chunk_.tokens() == 0 || chunk_.tokens() + input.rows() <= kChunkTokens;
    };
    for (; first < inputs.size() && fits(inputs[first]); ++first) {
      const EncodeInput& input = inputs[first];
      KvCache::Sequence& sequence = passing.begin(-1 - static_cast<std::int64_t>(first));  // which nobody else has
      cache_->reserve(sequence, input.rows());
      if (input.frames != nullptr) chunk_.frames.push_back({input.frames, input.count});
      for (int i = 0; i < input.rows(); ++i) {
        if (input.frames == nullptr) chunk_.ids.push_back(input.tokens[i]);
        chunk_.types.push_back(input.types == nullptr ? 0 : input.types[i]);
        chunk_.push(sequence, i, used, input.rows());
      }
    }
    Step step = make_step(*cache_, chunk_);
    embedding_->run(step, *hidden_);
    ResidualStream stream(step, hidden_->data(), hidden_->stride(), spec_.hidden);
    stack_->run(step, stream, poll);
    float* to = rows;
    for_tokens(*team_, step.tokens(),
               [&](std::int64_t t) { stream.read_row(t, stack_->norm(), to + t * spec_.hidden); });
    rows += std::int64_t{step.tokens()} * spec_.hidden;
  }
  return out;
}

void Decoder::check(const EncodeInput& input) const {
  const char* what = input.frames == nullptr ? " tokens" : " frames";
  require((input.frames != nullptr) == embedding_->reads_frames(), "an input must be of ",
          embedding_->reads_frames() ? "frames" : "tokens");
  require(input.count > 0, "an input has no", what);
  require(input.rows() <= spec_.context, "an input has ", input.count, what, ", beyond the context of ", spec_.context);
  if (input.frames != nullptr) return;
  for (int i = 0; i < input.count; ++i) check_token(input.tokens[i], spec_.vocab);
  for (int i = 0; input.types != nullptr && i < input.count; ++i)
    require(input.types[i] >= 0 && input.types[i] < std::max(spec_.embedding.types, 1), "token type ", input.types[i],
            " is not one of ", spec_.embedding.types);
}

std::vector<float> Decoder::embed(const EncodeInput& input) {
  check(input);
  require(input.frames != nullptr, "what comes in are tokens, and no frames");
  chunk_.clear(0);
  chunk_.frames.push_back({input.frames, input.count});
  for (int i = 0; i < input.rows(); ++i) chunk_.positions.push_back(i);
  Step step = make_step(*cache_, chunk_);
  embedding_->run(step, *hidden_);
  std::vector<float> out(static_cast<std::size_t>(input.rows()) * static_cast<std::size_t>(spec_.hidden));
  for (int t = 0; t < step.tokens(); ++t)
    std::copy_n(hidden_->row(t), spec_.hidden, out.data() + std::int64_t{t} * spec_.hidden);
  return out;
}

std::vector<float> Decoder::normed(const float* hidden, int tokens) {
  const std::int64_t width = spec_.hidden;
  std::vector<float> out(static_cast<std::size_t>(tokens * width));
  for_tokens(*team_, tokens, [&](std::int64_t t) {
    if (stack_->norm() != nullptr)
      stack_->norm()->run(hidden + t * width, out.data() + t * width);
    else
      std::copy_n(hidden + t * width, width, out.data() + t * width);
  });
  return out;
}

void Decoder::remember(const std::vector<std::int64_t>& sequences, const std::vector<EncodeInput>& inputs,
                       const Poll& poll) {
  require(encoder_ != nullptr, "there is no encoder whose states could be remembered");
  std::set<std::int64_t> seen;
  for (const std::int64_t sequence : sequences) {
    require(sequence >= 0, "sequence ids must not be negative, got ", sequence);
    require(seen.insert(sequence).second, "sequence ", sequence, " appears twice");
    require(cache_->length(sequence) == 0, "sequence ", sequence, " holds ", cache_->length(sequence),
            " tokens that read something else");
    require(memory_->length(sequence) == 0, "sequence ", sequence, " remembers an input already");
  }
  const std::vector<float> states = encoder_->encode(inputs, {}, poll);
  Begun begun(*memory_);
  const float* rows = states.data();
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    KvCache::Sequence& sequence = begun.begin(sequences[i]);
    const int length = inputs[i].rows();
    memory_->reserve(sequence, length);
    for (int first = 0; first < length; first += kChunkTokens) {
      chunk_.clear(memory_->pools());
      for (int t = first; t < std::min(length, first + kChunkTokens); ++t)
        chunk_.push(sequence, t, adapters_.of(sequences[i]), length);
      remember_chunk(rows, poll);
      rows += static_cast<std::int64_t>(chunk_.tokens()) * spec_.hidden;
    }
    memory_->commit(sequence, length);
  }
  begun.keep();
}

void Decoder::remember_chunk(const float* states, const Poll& poll) {
  Step step = make_step(*memory_, chunk_);
  enter(states, step.tokens());
  for (Block& block : stack_->blocks()) {
    poll();
    block.remember(step, *hidden_);
  }
}

}  // namespace gossamer
