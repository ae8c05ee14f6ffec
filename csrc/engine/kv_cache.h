// Keys and values of many sequences in pages of 64 tokens behind a page table each.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "common/buffer.h"
#include "kernels/vector_kernels.h"

namespace gossamer {

// A page holds 64 tokens of every layer and KV head: [layer][kv head] x (K as [head_dim][64], V as [64][padded_dim]).
class KvCache {
 public:
  struct Sequence {
    int length = 0;
    std::vector<std::uint8_t*> pages;
  };

  KvCache(int layers, int kv_heads, int head_dim, KvType type);

  KvType type() const { return type_; }
  int padded_dim() const { return padded_dim_; }
  std::int64_t head_bytes() const { return head_bytes_; }
  std::int64_t layer_offset(int layer) const { return std::int64_t{layer} * kv_heads_ * head_bytes_; }
  std::int64_t token_bytes() const;  // K and V of one token, all layers

  // The sequence, made empty when new. References stay valid until `free`.
  Sequence& sequence(std::int64_t id) { return sequences_[id]; }
  int length(std::int64_t id) const;

  // Pages for `length` tokens; lengths themselves change only through `commit`.
  void reserve(Sequence& sequence, int length);
  static void commit(Sequence& sequence, int length) { sequence.length = length; }

  // Forgets the last n tokens and gives back whole pages. Throws InvalidArgument when the sequence has fewer.
  void rollback(std::int64_t id, int n);
  void free(std::int64_t id);
  void trim(Sequence& sequence);  // gives back pages behind the length

 private:
  int kv_heads_;
  int padded_dim_;
  KvType type_;
  std::int64_t head_bytes_;
  std::int64_t page_bytes_;
  std::map<std::int64_t, Sequence> sequences_;
  std::vector<std::unique_ptr<Buffer<std::uint8_t>>> memory_;
  std::vector<std::uint8_t*> unused_;
};

}  // namespace gossamer
