// Keys and values of many sequences in pages of 64 tokens behind page tables.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <vector>

#include "engine/page_pool.h"
#include "ops/attention.h"

namespace gossamer {

// What a layer keeps of a token.
struct KvShape {
  int kv_heads = 0;
  int head_dim = 0;
  int window = 0;  // positions that it reads, the token's own included; 0: all
  bool operator==(const KvShape&) const = default;
};

// The cache is at its limit. The bindings turn it into CacheFull.
struct CacheFull : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Layers of one shape are a pool. A page of a pool holds 64 tokens of all its layers: [layer][kv head] x (K, V),
// as AttentionArgs has them. Sequences that were forked share pages until one of them writes there. Pages that a pool's
// layers no longer see are given back.
class KvCache {
 public:
  // Where a layer's keys and values lie.
  struct Layer {
    int pool;
    KvPlace place;
  };
  using Page = PagePool::Page;
  struct Table {
    std::vector<Page*> pages;
    std::vector<std::uint8_t*> data;  // the pages' memory
    std::size_t unseen = 0;           // the first pages, which are given back: null in both
  };
  struct Sequence {
    int length = 0;
    std::vector<Table> tables;  // by pool
  };

  // limit: most bytes of all pages; 0 for none.
  KvCache(std::vector<KvShape> layers, KvType type, std::int64_t limit = 0);
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  KvType type() const { return type_; }
  const std::vector<KvShape>& shapes() const { return shapes_; }
  const Layer& layer(int index) const { return layers_[static_cast<std::size_t>(index)]; }
  std::size_t pools() const { return pools_.size(); }
  std::int64_t used_bytes() const { return used_; }  // pages that sequences have, a shared one once
  std::int64_t limit() const { return limit_; }
  // Most bytes of the pages of a sequence while it grows to `length` tokens, by `step` at most each time.
  std::int64_t bytes_of(int length, int step) const;
  // The same beyond those that it has, whatever others do meanwhile; where it is to be forked, of so many tokens.
  std::int64_t growth(std::int64_t id, int length, int step, int forked = 0) const;
  // Bytes that the last of so many tokens reads.
  std::int64_t read_bytes(int length) const;
  // The limit is for both together from now on; the other outlives this.
  void count_with(const KvCache& other) { beside_ = &other; }

  // The sequence, made empty when new. References stay valid until `free`.
  Sequence& sequence(std::int64_t id);
  int length(std::int64_t id) const;
  // The least length, other than none, that rollback, fork and save may cut a sequence to.
  int shortest(std::int64_t id) const;

  // Pages for `length` tokens, none of those behind the present length shared with others; lengths themselves change
  // only through `commit`. Throws CacheFull; `trim` then undoes what was had.
  void reserve(Sequence& sequence, int length);
  // Makes that the length, and gives back pages that are not seen even where a few hundred tokens are taken back.
  void commit(Sequence& sequence, int length);

  // Forgets the last n tokens and gives back whole pages. Throws InvalidArgument when the sequence has fewer, or would be
  // shorter than `shortest`.
  void rollback(std::int64_t id, int n);
  // Begins sequence `to` with the first `length` tokens of another. Throws InvalidArgument when `to` holds tokens,
  // `from` has fewer, or length is below its `shortest`, and CacheFull; then nothing has changed.
  void fork(std::int64_t from, std::int64_t to, int length);
  // Begins sequence `to` with all of another, which no longer grows: no page is copied.
  void share(std::int64_t from, std::int64_t to);
  void free(std::int64_t id);
  // Bytes of the pages that the first `length` tokens of a sequence lie on and whoever goes on sees, pool by pool; what
  // else lies on the last page of each comes along. Throws InvalidArgument where the sequence has fewer, or length is
  // below its `shortest`.
  std::vector<std::uint8_t> save(std::int64_t id, int length) const;
  // Begins a sequence with what `save` gave of a cache of the same shapes and type. Throws InvalidArgument where it
  // holds tokens or there are more or fewer bytes, and CacheFull; then nothing has changed.
  void restore(std::int64_t id, const std::uint8_t* bytes, std::int64_t size, int length);
  // Gives back pages behind the length, and the sequence itself when it is empty.
  void trim(std::int64_t id);

 private:
  struct Pool {
    KvShape shape;
    std::int64_t page_bytes = 0;
    std::unique_ptr<PagePool> pages;
  };

  Page* take(Pool& pool);
  void release(Pool& pool, Page* page);
  std::int64_t spare_bytes() const;
  void shorten(Sequence& sequence, int length);
  void check_cut(std::int64_t id, const char* what, int length) const;
  Page* copy(Pool& pool, const Page& page);
  static std::size_t most_pages(const Pool& pool, int length, int step);
  // The first page that layers of a pool see when a sequence of such a length goes on.
  static std::size_t first_page(const Pool& pool, int length);
  std::int64_t saved_bytes(int length) const;

  std::vector<KvShape> shapes_;
  KvType type_;
  std::int64_t limit_;
  const KvCache* beside_ = nullptr;
  std::atomic<std::int64_t> used_ = 0;  // which others may ask for during a step
  std::vector<Layer> layers_;
  std::vector<Pool> pools_;
  std::map<std::int64_t, Sequence> sequences_;
};

}  // namespace gossamer
