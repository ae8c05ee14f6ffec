#include "engine/kv_cache.h"

#include <algorithm>
#include <cstring>

#include "common/buffer.h"
#include "common/error.h"
#include "kernels/vectors.h"

namespace gossamer {
namespace {

// Bytes of pages that are kept though no sequence has them, beside what shares a slab with those that one has.
constexpr std::int64_t kMostSpare = 32 << 20;

// Tokens that may be taken back, whatever lies behind a window: guesses, the end of a text that is written again.
constexpr int kTakenBack = 512;

std::size_t pages_of(int length) { return static_cast<std::size_t>((length + kPageTokens - 1) / kPageTokens); }

std::int64_t beyond(std::size_t have, std::size_t need) {
  return need > have ? static_cast<std::int64_t>(need - have) : 0;
}

}  // namespace

KvCache::KvCache(std::vector<KvShape> layers, KvType type, std::int64_t limit)
    : shapes_(std::move(layers)), type_(type), limit_(limit) {
  require(limit >= 0, "kv_limit must not be negative, got ", limit);
  const KvKernels& kernels = kv_kernels(type);
  const std::int64_t row = std::int64_t{kPageTokens} * kernels.element_bytes;
  const std::int64_t scales = std::int64_t{kPageTokens} * kernels.scale_bytes;
  for (const KvShape& shape : shapes_) {
    require(type != KvType::kInt8 || shape.head_dim <= kMostCodeDim, "kv int8 takes heads of at most ", kMostCodeDim,
            " elements, got ", shape.head_dim);
    auto pool = std::find_if(pools_.begin(), pools_.end(), [&](const Pool& p) { return p.shape == shape; });
    if (pool == pools_.end()) pool = pools_.insert(pools_.end(), {shape, 0, nullptr});
    KvPlace place;
    place.padded_dim = static_cast<int>(round_up(static_cast<std::size_t>(shape.head_dim), 16));
    place.offset = pool->page_bytes;
    place.v_offset = row * static_cast<std::int64_t>(round_up(static_cast<std::size_t>(shape.head_dim),
                                                              static_cast<std::size_t>(kernels.together))) +
                     scales;
    place.head_bytes = static_cast<std::int64_t>(
        round_up(static_cast<std::size_t>(place.v_offset + row * place.padded_dim + scales), kCacheLine));
    pool->page_bytes += shape.kv_heads * place.head_bytes;
    layers_.push_back({static_cast<int>(pool - pools_.begin()), place});
  }
  for (Pool& pool : pools_) pool.pages = std::make_unique<PagePool>(pool.page_bytes);
}

KvCache::~KvCache() = default;

// `reserve` takes the pages of a step before `commit` gives back those of whole spans that the window does not reach from
// kTakenBack tokens before its end, so that the pages of a window hold the rest of a span, those tokens, the window and
// the step at most.
std::size_t KvCache::most_pages(const Pool& pool, int length, int step) {
  require(length >= 0 && step > 0, "a sequence grows to no less than no tokens, by one or more, got ", length, " by ",
          step);
  const std::int64_t window = pool.shape.window;
  if (window == 0) return pages_of(length);
  const std::int64_t most = (kAttentionSpan - 1) + (kTakenBack - 1) + window + step;
  return pages_of(static_cast<int>(std::min<std::int64_t>(length, most)));
}

std::int64_t KvCache::bytes_of(int length, int step) const {
  std::int64_t total = 0;
  for (const Pool& pool : pools_) total += pool.page_bytes * static_cast<std::int64_t>(most_pages(pool, length, step));
  return total;
}

std::int64_t KvCache::growth(std::int64_t id, int length, int step, int forked) const {
  require(forked >= 0, "no less than no tokens are forked, got ", forked);
  const auto found = sequences_.find(id);
  std::int64_t total = 0;
  for (std::size_t i = 0; i < pools_.size(); ++i) {
    const Pool& pool = pools_[i];
    std::size_t alone = 0;  // pages that are gone once it gives them back
    // Pages that it goes on with; of a window none that it is to fork, since these may be left to it alone.
    std::size_t there = pool.shape.window == 0 ? static_cast<std::size_t>(forked / kPageTokens) : 0;
    if (found != sequences_.end()) {
      const std::vector<Page*>& pages = found->second.tables[i].pages;
      const auto whole = static_cast<std::size_t>(found->second.length / kPageTokens);
      for (std::size_t p = 0; p < pages.size(); ++p) {
        const bool mine = pages[p] != nullptr && pages[p]->users == 1;
        if (mine) ++alone;
        if (mine || p < whole) ++there;  // otherwise it is copied
      }
    }
    total += pool.page_bytes * std::min(beyond(there, pages_of(length)), beyond(alone, most_pages(pool, length, step)));
  }
  return total;
}

std::int64_t KvCache::read_bytes(int length) const {
  std::int64_t total = 0;
  for (const Pool& pool : pools_)
    total += pool.page_bytes / kPageTokens * (pool.shape.window == 0 ? length : std::min(length, pool.shape.window));
  return total;
}

KvCache::Sequence& KvCache::sequence(std::int64_t id) {
  Sequence& sequence = sequences_[id];
  if (sequence.tables.empty()) sequence.tables.resize(pools_.size());
  return sequence;
}

int KvCache::length(std::int64_t id) const {
  const auto found = sequences_.find(id);
  return found == sequences_.end() ? 0 : found->second.length;
}

KvCache::Page* KvCache::take(Pool& pool) {
  const std::int64_t used = used_bytes() + (beside_ == nullptr ? 0 : beside_->used_bytes());
  if (limit_ != 0 && used + pool.page_bytes > limit_)
    throw CacheFull(concat("the KV cache is at its limit: ", used, " bytes are in use, kv_limit is ", limit_,
                           ", and a page more takes ", pool.page_bytes));
  if (limit_ != 0 && pool.pages->spare_bytes() == 0 && used + spare_bytes() + pool.page_bytes > limit_)
    for (Pool& other : pools_) other.pages->shrink(other.pages->spare_bytes());
  Page* page = pool.pages->take();
  used_ += pool.page_bytes;
  return page;
}

void KvCache::release(Pool& pool, Page* page) {
  if (page == nullptr || --page->users != 0) return;
  used_ -= pool.page_bytes;
  pool.pages->give_back(page);
  pool.pages->shrink(spare_bytes() - kMostSpare);
}

std::int64_t KvCache::spare_bytes() const {
  std::int64_t total = 0;
  for (const Pool& pool : pools_) total += pool.pages->spare_bytes();
  return total;
}

KvCache::Page* KvCache::copy(Pool& pool, const Page& page) {
  Page* mine = take(pool);
  std::memcpy(mine->data, page.data, static_cast<std::size_t>(pool.page_bytes));
  return mine;
}

int KvCache::shortest(std::int64_t id) const {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) return 0;
  int most = 0;
  for (std::size_t i = 0; i < pools_.size(); ++i) {
    const auto unseen = static_cast<int>(found->second.tables[i].unseen);
    if (unseen != 0) most = std::max(most, unseen * kPageTokens + pools_[i].shape.window - 1);
  }
  return most;
}

void KvCache::check_cut(std::int64_t id, const char* what, int length) const {
  require(length == 0 || length >= shortest(id), "cannot ", what, " ", length, " tokens of sequence ", id,
          ": what its windows do not reach is given back, it can be cut to ", shortest(id), " and more");
}

std::size_t KvCache::first_page(const Pool& pool, int length) {
  if (pool.shape.window == 0) return 0;
  // Attention goes by whole spans.
  return static_cast<std::size_t>(std::max(0, length + 1 - pool.shape.window) / kAttentionSpan) *
         (kAttentionSpan / kPageTokens);
}

void KvCache::commit(Sequence& sequence, int length) {
  sequence.length = length;
  for (std::size_t i = 0; i < pools_.size(); ++i) {
    Table& table = sequence.tables[i];
    for (const std::size_t first = first_page(pools_[i], length - kTakenBack); table.unseen < first; ++table.unseen) {
      release(pools_[i], table.pages[table.unseen]);
      table.pages[table.unseen] = nullptr;
      table.data[table.unseen] = nullptr;
    }
  }
}

void KvCache::reserve(Sequence& sequence, int length) {
  const auto begun = static_cast<std::size_t>(sequence.length / kPageTokens);
  for (std::size_t i = 0; i < pools_.size(); ++i) {
    Table& table = sequence.tables[i];
    table.pages.reserve(pages_of(length));
    table.data.reserve(pages_of(length));
    if (begun >= table.unseen && begun < table.pages.size() && table.pages[begun]->users > 1) {
      Page* mine = copy(pools_[i], *table.pages[begun]);
      release(pools_[i], table.pages[begun]);
      table.pages[begun] = mine;
      table.data[begun] = mine->data;
    }
    while (table.pages.size() < pages_of(length)) {
      table.pages.push_back(take(pools_[i]));
      table.data.push_back(table.pages.back()->data);
    }
  }
}

void KvCache::shorten(Sequence& sequence, int length) {
  for (std::size_t i = 0; i < sequence.tables.size(); ++i) {
    Table& table = sequence.tables[i];
    while (table.pages.size() > pages_of(length)) {
      release(pools_[i], table.pages.back());
      table.pages.pop_back();
      table.data.pop_back();
    }
  }
}

void KvCache::trim(std::int64_t id) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) return;
  shorten(found->second, found->second.length);
  if (found->second.length == 0) sequences_.erase(found);
}

void KvCache::rollback(std::int64_t id, int n) {
  const int have = length(id);
  require(n >= 0 && n <= have, "cannot roll back ", n, " tokens of sequence ", id, ", which has ", have);
  if (n == 0) return;
  check_cut(id, "roll back to", have - n);
  sequences_[id].length -= n;
  trim(id);
}

void KvCache::fork(std::int64_t from, std::int64_t to, int length) {
  require(to >= 0, "sequence ids must not be negative, got ", to);
  const int have = this->length(from);
  require(length >= 0 && length <= have, "cannot fork ", length, " tokens of sequence ", from, ", which has ", have);
  require(this->length(to) == 0, "cannot fork into sequence ", to, ", which has ", this->length(to), " tokens");
  check_cut(from, "fork", length);
  if (length == 0) return;
  const Sequence& source = sequence(from);
  Sequence& sink = sequence(to);
  const auto whole = static_cast<std::size_t>(length / kPageTokens);
  try {
    for (std::size_t i = 0; i < pools_.size(); ++i) {
      Table& table = sink.tables[i];
      table.pages.reserve(pages_of(length));
      table.data.reserve(pages_of(length));
      for (std::size_t p = 0; p < pages_of(length); ++p) {
        Page* page = source.tables[i].pages[p];
        if (p >= whole)
          page = copy(pools_[i], *page);
        else if (page != nullptr)
          ++page->users;
        table.pages.push_back(page);
        table.data.push_back(page == nullptr ? nullptr : page->data);
      }
      table.unseen = source.tables[i].unseen;
    }
  } catch (...) {
    trim(to);  // still of no length
    throw;
  }
  sink.length = length;
}

void KvCache::share(std::int64_t from, std::int64_t to) {
  const Sequence& source = sequence(from);
  Sequence& sink = sequence(to);
  require(sink.length == 0, "sequence ", to, " has a memory of its own");
  for (std::size_t i = 0; i < pools_.size(); ++i) {
    sink.tables[i] = source.tables[i];
    for (Page* page : sink.tables[i].pages)
      if (page != nullptr) ++page->users;
  }
  sink.length = source.length;
}

std::int64_t KvCache::saved_bytes(int length) const {
  std::int64_t total = 0;
  for (const Pool& pool : pools_)
    total += pool.page_bytes * static_cast<std::int64_t>(pages_of(length) - first_page(pool, length));
  return total;
}

std::vector<std::uint8_t> KvCache::save(std::int64_t id, int length) const {
  const int have = this->length(id);
  require(length >= 0 && length <= have, "cannot save ", length, " tokens of sequence ", id, ", which has ", have);
  check_cut(id, "save", length);
  std::vector<std::uint8_t> bytes;
  if (length == 0) return bytes;
  bytes.reserve(static_cast<std::size_t>(saved_bytes(length)));
  const Sequence& source = sequences_.at(id);
  for (std::size_t i = 0; i < pools_.size(); ++i)
    for (std::size_t p = first_page(pools_[i], length); p < pages_of(length); ++p) {
      const std::uint8_t* data = source.tables[i].data[p];
      bytes.insert(bytes.end(), data, data + pools_[i].page_bytes);
    }
  return bytes;
}

void KvCache::restore(std::int64_t id, const std::uint8_t* bytes, std::int64_t size, int length) {
  require(id >= 0, "sequence ids must not be negative, got ", id);
  require(this->length(id) == 0, "cannot restore sequence ", id, ", which has ", this->length(id), " tokens");
  require(length > 0, "there must be a token to restore, got ", length);
  const std::int64_t expected = saved_bytes(length);
  require(size == expected, length, " tokens take ", expected, " bytes of keys and values here, got ", size);
  Sequence& sink = sequence(id);
  try {
    for (std::size_t i = 0; i < pools_.size(); ++i) {
      Table& table = sink.tables[i];
      table.unseen = first_page(pools_[i], length);
      table.pages.resize(table.unseen);
      table.data.resize(table.unseen);
    }
    reserve(sink, length);
  } catch (...) {
    trim(id);
    throw;
  }
  for (std::size_t i = 0; i < pools_.size(); ++i)
    for (std::size_t p = sink.tables[i].unseen; p < pages_of(length); ++p, bytes += pools_[i].page_bytes)
      std::memcpy(sink.tables[i].data[p], bytes, static_cast<std::size_t>(pools_[i].page_bytes));
  sink.length = length;
}

void KvCache::free(std::int64_t id) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) return;
  shorten(found->second, 0);
  sequences_.erase(found);
}

}  // namespace gossamer
