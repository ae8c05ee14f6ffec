// Pages of one size, in slabs.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "common/mapping.h"

namespace gossamer {

// Attention reads a few KB of each page before it comes to the next one. In small pages of the system that costs a look
// through its tables every 4 KB, which is a third of the time: so several pages of a cache are a slab of huge ones. A slab
// goes back to the system when nobody uses a page of it and there is more to spare than is wanted.
class PagePool {
 public:
  struct Slab;
  struct Page {
    std::uint8_t* data;
    int users;
    Slab* slab;
  };

  explicit PagePool(std::int64_t page_bytes);
  ~PagePool();
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;

  // Bytes of pages that were used and are not.
  std::int64_t spare_bytes() const { return spare_; }

  // A page with one user; what lies there is anything.
  Page* take();
  void give_back(Page* page);
  // Gives slabs that nobody uses back to the system, until that many bytes are gone.
  void shrink(std::int64_t bytes);

 private:
  std::int64_t page_bytes_;
  std::size_t pages_;  // of a slab
  std::int64_t spare_ = 0;
  std::vector<std::unique_ptr<Slab>> slabs_;
};

}  // namespace gossamer
