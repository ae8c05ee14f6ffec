// A transformer over packed weights. Opens no file; one call runs all blocks for all given tokens.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/thread_team.h"
#include "engine/adapters.h"
#include "engine/layers/embedding.h"
#include "engine/layers/head.h"
#include "engine/stack.h"

namespace gossamer {

struct StepOptions {
  bool all_logits = false;     // of every token, or of each entry's last
  int top_k = 0;               // only so many of each row, and their ids; 0: all logits of a row
  float* into = nullptr;       // where logits go; null: into the result
  std::int64_t into_rows = 0;  // rows that `into` has
};

struct StepResult {
  std::int64_t rows = 0;
  std::vector<float> values;      // [rows][vocab], unless they went elsewhere, or [rows][top_k]
  std::vector<std::int32_t> ids;  // [rows][top_k]
};

// A text, or what else there is of one, that is encoded.
struct EncodeInput {
  const std::int32_t* tokens;
  const std::int32_t* types;      // of the tokens; null: all are 0
  int count;                      // of tokens, or of frames
  const float* frames = nullptr;  // [count][bins], instead of tokens; null: there are tokens

  int rows() const { return frames == nullptr ? count : (count + 1) / 2; }  // of states
};

// Hidden states of memories, one behind the other and as many rows each, that consecutive sequences read.
struct MemoryStates {
  const float* rows = nullptr;
  int count = 0;
};

class Decoder {
 public:
  // Names as in gossamer.arch: "embed", "head", "layers.N.q", …; "norm", "layers.N.attn_norm", "layers.N.q.bias", ….
  // Several decoders may share a team, or a cache if their layers keep the same, as long as calls do not overlap.
  // Throws InvalidArgument naming what is wrong with the description, or a weight that is missing, unknown, or of
  // another shape than that says. `draft`: "head" is there even where the description has it tied, and may have fewer
  // rows: logits are then of the vocabulary's first tokens alone.
  Decoder(const spec::Transformer& spec, const PackedWeights& weights, const Vectors& vectors,
          const std::string& activations, std::shared_ptr<ThreadTeam> team, std::shared_ptr<KvCache> cache,
          bool draft = false);

  const spec::Transformer& spec() const { return spec_; }
  Decoder* encoder() { return encoder_.get(); }  // null: there is none
  const std::shared_ptr<ThreadTeam>& team() const { return team_; }
  const std::shared_ptr<KvCache>& shared_cache() const { return cache_; }
  int logits() const { return head_ ? head_->width() : spec_.vocab; }  // of a row
  KvCache& cache() { return *cache_; }
  const KvCache& cache() const { return *cache_; }
  std::int64_t kv_bytes() const { return cache_->used_bytes() + (memory_ ? memory_->used_bytes() : 0); }
  // What one token reads: of experts, as many as are chosen, of the mean size.
  std::int64_t weight_bytes() const;
  std::vector<std::pair<std::string, std::string>> kernels() const;  // weight name -> kernel

  // Appends the tokens of each entry to its sequence. When it throws, no sequence has changed.
  StepResult step(const std::vector<StepEntry>& entries, const StepOptions& options, const Poll& poll);

  // Begins sequences with what they read: the keys and values of what an encoder gives of inputs, until they are freed.
  // When it throws, none has changed.
  void remember(const std::vector<std::int64_t>& sequences, const std::vector<EncodeInput>& inputs, const Poll& poll);

  // Of the encoder, where there is one beside: [tokens of all inputs][hidden]: the normed states behind the last block,
  // of each input from an empty context. `mix`: of all inputs; that of an encoder beside a decoder has no adapters.
  std::vector<float> encode(const std::vector<EncodeInput>& inputs, const Mix& mix, const Poll& poll);

  // [n][hidden]; consecutive sequences of `sequence_length` tokens (0: one), positions from 0.
  std::vector<float> embed(const std::int32_t* tokens, int n, int sequence_length);
  // The same of the states, [n][hidden], that the frames of one input are.
  std::vector<float> embed(const EncodeInput& input);
  // One block over hidden [tokens][hidden], in place; consecutive sequences of `sequence_length` tokens, positions from
  // 0. `whole` false: only as far as the captures need; `hidden` is then scratch.
  void forward_block(int index, float* hidden, int tokens, int sequence_length, const MemoryStates& memory,
                     Captures& captures, bool whole, const Poll& poll);
  // The final norm of hidden [tokens][hidden].
  std::vector<float> normed(const float* hidden, int tokens);
  // Final norm and logits of hidden [tokens][hidden].
  std::vector<float> head(const float* hidden, int tokens, const Poll& poll);
  // Replaces a block's weight by one of the same shape.
  void set_weight(const std::string& name, std::shared_ptr<const PackedWeight> weight);

  // Adds what is named as in the constructor, "layers.3.q.low_rank_u", and serves the sequences that choose it alone;
  // returns its number. Throws InvalidArgument naming what fits no linear.
  int add_adapter(const PackedWeights& weights, const Vectors& vectors);
  // Throws InvalidArgument where a sequence uses it.
  void remove_adapter(int adapter);
  std::int64_t adapter_bytes(int adapter) const { return adapters_.bytes(adapter); }
  // Throws InvalidArgument where the sequence holds tokens, whose keys and values would be those of another choice.
  void choose(std::int64_t sequence, Mix mix);

  // As of the cache, with the choice of adapters.
  void fork(std::int64_t from, std::int64_t to, int length);
  void free(std::int64_t sequence);

 private:
  // Calls f for each weight that a step multiplies with, in the order of the computation: its full name, itself, and
  // the part of it that a token reads.
  void visit(const std::function<void(const std::string&, const Linear&, double)>& f) const;
  void for_projections(const std::function<void(Projection&)>& f);
  Step make_step(KvCache& cache, const Chunk& chunk);
  // Puts hidden [tokens][hidden] where parts read the stream's rows.
  void enter(const float* hidden, int tokens);
  const HeadLayer& way_out() const;
  void check(const EncodeInput& input) const;
  // Has all blocks compute what they keep of the memory of a chunk.
  void remember_chunk(const float* states, const Poll& poll);
  void run_head(Step& step, ResidualStream& stream, const StepOptions& options, StepResult& result, std::int64_t done);

  spec::Transformer spec_;
  std::string activations_;
  std::shared_ptr<ThreadTeam> team_;
  std::shared_ptr<KvCache> cache_;
  std::unique_ptr<Decoder> encoder_;  // null: there is none
  std::unique_ptr<KvCache> memory_;   // what is kept of its states
  const VectorKernels& vectors_;
  const KvKernels& kv_kernels_;
  Workspace workspace_;
  ActivationCache inputs_;
  Attention attention_;
  Chunk chunk_;
  Adapters adapters_;
  Matrix* hidden_ = nullptr;
  std::unique_ptr<EmbeddingLayer> embedding_;
  std::unique_ptr<HeadLayer> head_;  // null: none
  std::unique_ptr<Stack> stack_;
  std::vector<float> rows_;  // logits of which the largest are taken
};

}  // namespace gossamer
