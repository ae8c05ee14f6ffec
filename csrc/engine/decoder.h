// A decoder-only transformer over packed weights. Opens no file; one call runs all blocks for all given tokens.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/buffer.h"
#include "common/thread_team.h"
#include "engine/config.h"
#include "engine/kv_cache.h"
#include "ops/attention.h"
#include "ops/linear.h"

namespace gossamer {

// New tokens of one sequence.
struct StepEntry {
  std::int64_t sequence;
  const std::int32_t* tokens;
  int count;
};

// Called between layers; throws to stop the call.
using Poll = std::function<void()>;

// The inputs of a block's linears, copied out where asked for: name -> [tokens][cols].
using Captures = std::map<std::string, std::vector<float>>;

struct DecoderOptions {
  int threads = 0;
  KvType kv = KvType::kF32;
  std::string activations = "auto";
};

class Decoder {
 public:
  using Weights = std::map<std::string, std::shared_ptr<const PackedWeight>>;
  using Vectors = std::map<std::string, std::vector<float>>;

  // Names as in gossamer.arch: "embed", "head", "layers.N.q", …; "norm", "layers.N.attn_norm", "layers.N.q.bias", ….
  // A linear of a block may have a low-rank branch, y = W x + U (V x): "layers.N.q.low_rank_u" [rows][r] and
  // "layers.N.q.low_rank_v" [r][cols].
  // Throws InvalidArgument naming a weight that is missing, unknown, or of another shape than the config says.
  Decoder(DecoderConfig config, const Weights& weights, const Vectors& vectors, const DecoderOptions& options);

  const DecoderConfig& config() const { return config_; }
  int threads() const { return team_.size(); }
  KvType kv() const { return cache_.type(); }
  std::int64_t kv_token_bytes() const { return cache_.token_bytes(); }
  std::int64_t weight_bytes() const;
  std::vector<std::pair<std::string, std::string>> kernels() const;  // weight name -> kernel

  // Appends the tokens of each entry to its sequence. Returns logits [n][vocab]: of every token, or of each entry's
  // last. When it throws, no sequence has changed.
  std::vector<float> step(const std::vector<StepEntry>& entries, bool all_logits, const Poll& poll);
  void rollback(std::int64_t sequence, int n) { cache_.rollback(sequence, n); }
  void free(std::int64_t sequence) { cache_.free(sequence); }
  int length(std::int64_t sequence) const { return cache_.length(sequence); }

  // [n][hidden]
  std::vector<float> embed(const std::int32_t* tokens, int n) const;
  // One block over hidden [tokens][hidden], in place; consecutive sequences of `sequence_length` tokens, positions from
  // 0. `whole` false: only as far as the captures need; `hidden` is then scratch.
  void forward_block(int index, float* hidden, int tokens, int sequence_length, Captures& captures, bool whole,
                     const Poll& poll);
  // Final norm and logits of hidden [tokens][hidden].
  std::vector<float> head(const float* hidden, int tokens, const Poll& poll);
  // Replaces a block's weight by one of the same shape.
  void set_weight(const std::string& name, std::shared_ptr<const PackedWeight> weight);

 private:
  static constexpr int kLinearCount = 7;
  enum LinearIndex { kQ, kK, kV, kO, kGate, kUp, kDown };

  // U (V x), of any rank.
  struct LowRank {
    std::unique_ptr<Linear> u, v;
  };

  struct Block {
    std::unique_ptr<Linear> linears[kLinearCount];
    LowRank low_rank[kLinearCount];           // null: none
    std::vector<float> biases[kLinearCount];  // empty: none
    std::vector<float> attn_norm;
    std::vector<float> mlp_norm;
  };

  // Rows of floats with a stride of whole blocks, zero behind the columns.
  struct Matrix {
    Buffer<float> memory;
    int cols = 0;
    std::int64_t stride = 0;
    void shape(int tokens, int columns);
    float* row(std::int64_t t) { return memory.data() + t * stride; }
    Rows rows(int tokens) const { return {memory.data(), tokens, cols, stride}; }
  };

  static const char* const kLinearNames[kLinearCount];
  std::pair<int, int> shape_of(int linear) const;  // rows, cols
  std::unique_ptr<Linear> make_linear(const std::string& name, std::shared_ptr<const PackedWeight> weight, int rows,
                                      int cols) const;
  void check_token(std::int32_t token) const;
  void reserve_scratch(int tokens);
  void set_angles(const std::vector<TokenPlace>& places);
  // last: stops behind this linear's inputs.
  void run_block(int index, float* hidden, std::int64_t stride, const std::vector<TokenPlace>& places, KvCache& cache,
                 int cache_layer, Captures* captures, int last = kLinearCount);
  void apply(Block& block, std::initializer_list<std::pair<LinearIndex, Matrix*>> outputs, const Matrix& x, int tokens);
  void capture(Captures* captures, const Block& block, LinearIndex linear, Matrix& x, int tokens) const;
  void add_rows(float* x, std::int64_t stride, Matrix& y, int tokens);
  void norm_rows(const float* x, std::int64_t stride, const std::vector<float>& weight, Matrix& out, int tokens);
  void logits(const float* hidden, std::int64_t stride, const std::vector<int>& rows, float* out);

  DecoderConfig config_;
  std::string activations_;
  ThreadTeam team_;
  KvCache cache_;
  const VectorKernels* kernels_;
  const KvKernels* kv_kernels_;
  std::unique_ptr<Linear> embed_;
  std::unique_ptr<Linear> head_;  // null when tied
  std::vector<float> norm_;
  std::vector<Block> blocks_;

  // Scratch of one chunk of tokens.
  Matrix hidden_, normed_, q_, k_, v_, mixed_, gate_, up_, delta_;
  Matrix inner_[kLinearCount], lifted_;  // V x of each low-rank branch, U (V x) of one
  std::vector<float> cosines_, sines_;   // [tokens][frequencies]
  ActivationCache inputs_;
  Attention attention_;
};

}  // namespace gossamer
