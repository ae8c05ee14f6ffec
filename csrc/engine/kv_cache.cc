#include "engine/kv_cache.h"

#include "common/error.h"

namespace gossamer {

KvCache::KvCache(int layers, int kv_heads, int head_dim, KvType type)
    : kv_heads_(kv_heads),
      padded_dim_(static_cast<int>(round_up(static_cast<std::size_t>(head_dim), 16))),
      type_(type) {
  const std::int64_t element = type == KvType::kF32 ? 4 : 2;
  head_bytes_ = static_cast<std::int64_t>(
      round_up(static_cast<std::size_t>(kPageTokens * (std::int64_t{head_dim} + padded_dim_) * element), kCacheLine));
  page_bytes_ = std::int64_t{layers} * kv_heads * head_bytes_;
}

std::int64_t KvCache::token_bytes() const { return page_bytes_ / kPageTokens; }

int KvCache::length(std::int64_t id) const {
  const auto found = sequences_.find(id);
  return found == sequences_.end() ? 0 : found->second.length;
}

void KvCache::reserve(Sequence& sequence, int length) {
  while (static_cast<int>(sequence.pages.size()) * kPageTokens < length) {
    if (unused_.empty()) {
      memory_.push_back(std::make_unique<Buffer<std::uint8_t>>(static_cast<std::size_t>(page_bytes_)));
      unused_.push_back(memory_.back()->data());
    }
    sequence.pages.push_back(unused_.back());
    unused_.pop_back();
  }
}

void KvCache::trim(Sequence& sequence) {
  while ((static_cast<int>(sequence.pages.size()) - 1) * kPageTokens >= sequence.length && !sequence.pages.empty()) {
    unused_.push_back(sequence.pages.back());
    sequence.pages.pop_back();
  }
}

void KvCache::rollback(std::int64_t id, int n) {
  const auto found = sequences_.find(id);
  const int have = found == sequences_.end() ? 0 : found->second.length;
  require(n >= 0 && n <= have, "cannot roll back ", n, " tokens of sequence ", id, ", which has ", have);
  if (n == 0) return;
  found->second.length -= n;
  trim(found->second);
}

void KvCache::free(std::int64_t id) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) return;
  for (std::uint8_t* page : found->second.pages) unused_.push_back(page);
  sequences_.erase(found);
}

}  // namespace gossamer
