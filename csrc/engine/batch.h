// The new tokens of a step: checked, given their places in the cache, and cut into chunks.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/adapters.h"
#include "engine/kv_cache.h"

namespace gossamer {

// Tokens that go through the blocks together: enough to keep expanded weights busy, few enough for the cache.
constexpr int kChunkTokens = 256;

// New tokens of one sequence.
struct StepEntry {
  std::int64_t sequence;
  const std::int32_t* tokens;
  int count;
};

// Tokens of a chunk, one behind the other, that use the same adapters.
struct Adapted {
  int begin, end;
  const Mix* mix;
};

// Frames of one input, [count][bins].
struct Frames {
  const float* rows;
  int count;
};

struct Chunk {
  std::vector<std::int32_t> ids;
  std::vector<int> positions;
  std::vector<Frames> frames;                     // instead of ids, one input behind the other
  std::vector<int> types;                         // of the tokens; empty: all are 0
  std::vector<std::vector<TokenPlace>> places;    // by pool of the cache
  std::vector<std::vector<TokenPlace>> memories;  // by pool of what keeps these
  std::vector<int> wanted;                        // tokens whose logits are asked for
  std::vector<Adapted> adapted;                   // those that use adapters

  int tokens() const { return static_cast<int>(positions.size()); }
  // Empties it, for a cache of so many pools, and memories of others.
  void clear(std::size_t pools, std::size_t memory_pools = 0);
  // mix: of the sequence; empty where it uses no adapter.
  // length: tokens that it has in the end, for those who see tokens behind their own; memory: what it reads, if any.
  void push(const KvCache::Sequence& sequence, int position, const Mix& mix = {}, int length = 0,
            const KvCache::Sequence* memory = nullptr);
};

// Throws InvalidArgument where a token is none of the vocabulary.
void check_token(std::int32_t token, int vocab);

class Batch {
 public:
  // Throws InvalidArgument naming what is wrong; the cache has not changed then. What it is given outlives this.
  Batch(const std::vector<StepEntry>& entries, bool all_logits, int vocab, int context, KvCache& cache,
        const Adapters& adapters, KvCache* memory = nullptr);
  // Takes back what `reserve` did, unless it was committed.
  ~Batch();
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;

  // Rows of logits that are asked for.
  std::int64_t wanted() const { return wanted_; }

  // Gets the pages. Throws CacheFull.
  void reserve();
  // Fills the chunk with the next tokens, of several sequences where they are short; false when there are none left.
  bool next(Chunk& chunk);
  // All tokens are in the cache.
  void commit();

 private:
  const std::vector<StepEntry>& entries_;
  bool all_logits_;
  KvCache& cache_;
  const Adapters& adapters_;
  KvCache* memory_;  // null: sequences have none
  std::int64_t wanted_ = 0;
  std::vector<KvCache::Sequence*> sequences_;  // of the entries, once reserved
  std::size_t entry_ = 0;                      // where `next` goes on
  int token_ = 0;
  bool committed_ = false;
};

}  // namespace gossamer
