#include "engine/batch.h"

#include <set>

#include "common/error.h"

namespace gossamer {

void Chunk::clear(std::size_t pools, std::size_t memory_pools) {
  ids.clear();
  positions.clear();
  types.clear();
  frames.clear();
  places.resize(pools);
  for (auto& tokens : places) tokens.clear();
  memories.resize(memory_pools);
  for (auto& tokens : memories) tokens.clear();
  wanted.clear();
  adapted.clear();
}

void Chunk::push(const KvCache::Sequence& sequence, int position, const Mix& mix, int length,
                 const KvCache::Sequence* memory) {
  if (!mix.empty()) {
    const int at = tokens();
    if (!adapted.empty() && adapted.back().end == at && *adapted.back().mix == mix)
      ++adapted.back().end;
    else
      adapted.push_back({at, at + 1, &mix});
  }
  positions.push_back(position);
  for (std::size_t i = 0; i < places.size(); ++i)
    places[i].push_back({sequence.tables[i].data.data(), position, length});
  for (std::size_t i = 0; memory != nullptr && i < memories.size(); ++i)
    memories[i].push_back({memory->tables[i].data.data(), position, memory->length});
}

void check_token(std::int32_t token, int vocab) {
  require(token >= 0 && token < vocab, "token id ", token, " is outside the vocabulary of ", vocab);
}

Batch::Batch(const std::vector<StepEntry>& entries, bool all_logits, int vocab, int context, KvCache& cache,
             const Adapters& adapters, KvCache* memory)
    : entries_(entries), all_logits_(all_logits), cache_(cache), adapters_(adapters), memory_(memory) {
  std::set<std::int64_t> seen;
  for (const StepEntry& entry : entries) {
    require(entry.sequence >= 0, "sequence ids must not be negative, got ", entry.sequence);
    require(seen.insert(entry.sequence).second, "sequence ", entry.sequence, " appears twice in one step");
    require(entry.count > 0, "sequence ", entry.sequence, " got no tokens");
    require(memory == nullptr || memory->length(entry.sequence) > 0, "sequence ", entry.sequence,
            " has nothing to read: it remembers no input");
    const std::int64_t end = static_cast<std::int64_t>(cache.length(entry.sequence)) + entry.count;
    require(end <= context, "sequence ", entry.sequence, " would grow to ", end, " tokens, beyond the context of ",
            context);
    for (int i = 0; i < entry.count; ++i) check_token(entry.tokens[i], vocab);
    wanted_ += all_logits ? entry.count : 1;
  }
}

Batch::~Batch() {
  if (committed_) return;
  for (const StepEntry& entry : entries_) cache_.trim(entry.sequence);
}

void Batch::reserve() {
  sequences_.reserve(entries_.size());
  for (const StepEntry& entry : entries_) {
    KvCache::Sequence& sequence = cache_.sequence(entry.sequence);
    sequences_.push_back(&sequence);
    cache_.reserve(sequence, sequence.length + entry.count);
  }
}

bool Batch::next(Chunk& chunk) {
  chunk.clear(cache_.pools(), memory_ == nullptr ? 0 : memory_->pools());
  for (; entry_ < entries_.size(); ++entry_, token_ = 0) {
    const StepEntry& entry = entries_[entry_];
    const Mix& mix = adapters_.of(entry.sequence);
    const KvCache::Sequence* memory = memory_ == nullptr ? nullptr : &memory_->sequence(entry.sequence);
    for (; token_ < entry.count; ++token_) {
      if (chunk.tokens() == kChunkTokens) return true;
      if (all_logits_ || token_ + 1 == entry.count) chunk.wanted.push_back(chunk.tokens());
      chunk.ids.push_back(entry.tokens[token_]);
      chunk.push(*sequences_[entry_], sequences_[entry_]->length + token_, mix, 0, memory);
    }
  }
  return chunk.tokens() > 0;
}

void Batch::commit() {
  for (std::size_t i = 0; i < entries_.size(); ++i)
    cache_.commit(*sequences_[i], sequences_[i]->length + entries_[i].count);
  committed_ = true;
}

}  // namespace gossamer
