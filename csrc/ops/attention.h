// Causal attention of tokens over their paged keys and values.
#pragma once

#include <cstdint>
#include <vector>

#include "common/buffer.h"
#include "common/parallel.h"
#include "kernels/vectors.h"

namespace gossamer {

// One token of a call: where its sequence's pages are, and where it stands in it.
struct TokenPlace {
  const std::uint8_t* const* pages;
  int position;
};

struct AttentionShape {
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int padded_dim = 0;
};

// out[t] = attention of q[t] over positions 0 .. position(t); q and out are [tokens][stride], heads one behind the
// other. `layer_offset` and `head_bytes` locate a KV head in a page: offset = layer_offset + kv_head * head_bytes. The
// work is split by position, never by the number of threads, and tokens that follow one another in a sequence share
// what is read of it; a token's result is the same in any company.
class Attention {
 public:
  void run(Parallel& team, const KvKernels& kernels, const AttentionShape& shape, const std::vector<TokenPlace>& tokens,
           std::int64_t layer_offset, std::int64_t head_bytes, const float* q, std::int64_t q_stride, float* out,
           std::int64_t out_stride);

 private:
  Buffer<float> scratch_;  // a part for each thread: AttentionArgs
  Buffer<float> results_;  // [token][kv head][span] as AttentionArgs has them
};

}  // namespace gossamer
