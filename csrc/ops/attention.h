// Attention of tokens over paged keys and values.
#pragma once

#include <cstdint>
#include <vector>

#include "common/buffer.h"
#include "common/parallel.h"
#include "kernels/vectors.h"

namespace gossamer {

// One token of a call: where the pages of its sequence, or of the one that it reads, are, and where it stands; and how
// many tokens these hold, where attention is not causal.
struct TokenPlace {
  std::uint8_t* const* pages;
  int position;
  int length = 0;
};

// Where a layer's keys and values are in a page: of KV head h, K lies offset + h * head_bytes behind the page's start,
// and V v_offset behind that.
struct KvPlace {
  std::int64_t offset = 0;
  std::int64_t head_bytes = 0;
  std::int64_t v_offset = 0;
  int padded_dim = 0;
};

struct AttentionShape {
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  float scale = 0;                // of the products of queries and keys
  int window = 0;                 // positions that a token sees, its own included; 0: all
  float softcap = 0;              // a scaled product x becomes softcap * tanh(x / softcap); 0: it stays
  const float* slopes = nullptr;  // [heads], times which the distance is taken off a score; null: none
  bool causal = true;             // no token sees those behind it; otherwise as far as it sees back, or all
  const float* bias = nullptr;    // as AttentionArgs has it, of all heads; null: none
  std::int64_t bias_stride = 0;
  const float* sinks = nullptr;  // [heads], scores that take part in the softmax beside the keys'; null: none
};

// Writes one token's keys and values, [kv_heads][head_dim] each, where it stands.
void append(const KvKernels& kernels, const AttentionShape& shape, const KvPlace& place, const TokenPlace& token,
            const float* k, const float* v);

// out[t] = attention of q[t] over positions 0 .. position(t), or the window's last of them, or over all, or as many
// behind; q and out are [tokens][stride], heads one behind the other. The work is split by position, never by the number
// of threads, and tokens that follow one another in a sequence, or read the same memory, share what is read of it; a
// token's result is the same in any company.
class Attention {
 public:
  void run(Parallel& team, const KvKernels& kernels, const AttentionShape& shape, const KvPlace& place,
           const std::vector<TokenPlace>& tokens, const float* q, std::int64_t q_stride, float* out,
           std::int64_t out_stride);

 private:
  // A block of tokens, one KV head, one span of positions.
  struct Task {
    std::size_t token;  // the first
    int tokens;
    int kv_head;
    int begin;
    int end;
    std::int64_t result;  // the first token's; the next ones' are `stride` behind one another
    std::int64_t stride;
  };
  // The results of one token and KV head, positions rising.
  struct Join {
    std::size_t token;
    int kv_head;
    std::int64_t result;
    int spans;
  };

  // All kept for their memory.
  std::vector<Task> tasks_;
  std::vector<Join> joins_;
  Buffer<float> scratch_;  // a part for each thread: AttentionArgs
  Buffer<float> results_;  // [token][kv head][span] as AttentionArgs has them
};

}  // namespace gossamer
