#include "engine/page_pool.h"

#include <algorithm>

namespace gossamer {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr std::int64_t kSlabBytes = 0;  // a page alone, so that what lies behind it is not to be read
#else
constexpr std::int64_t kSlabBytes = 8 << 20;
#endif

}  // namespace

struct PagePool::Slab {
  Slab(std::size_t bytes, std::size_t count) : memory(bytes), pages(count) {}
  bool full() const { return spare.empty() && begun == pages.size(); }
  bool unused() const { return spare.size() == begun; }

  Mapping memory;
  std::vector<Page> pages;
  std::size_t begun = 0;     // pages that were used at some time
  std::vector<Page*> spare;  // those of them that are not
};

PagePool::PagePool(std::int64_t page_bytes)
    : page_bytes_(page_bytes), pages_(static_cast<std::size_t>(std::max<std::int64_t>(1, kSlabBytes / page_bytes))) {}
PagePool::~PagePool() = default;

PagePool::Page* PagePool::take() {
  // The first that has one: later slabs are the sooner unused.
  auto found = std::find_if(slabs_.begin(), slabs_.end(), [](const auto& slab) { return !slab->full(); });
  if (found == slabs_.end())
    found = slabs_.insert(found, std::make_unique<Slab>(static_cast<std::size_t>(page_bytes_) * pages_, pages_));
  Slab& slab = **found;
  Page* page = nullptr;
  if (slab.spare.empty()) {
    page = &slab.pages[slab.begun];
    page->data = slab.memory.data() + static_cast<std::int64_t>(slab.begun) * page_bytes_;
    page->slab = &slab;
    ++slab.begun;
  } else {
    page = slab.spare.back();
    slab.spare.pop_back();
    spare_ -= page_bytes_;
  }
  page->users = 1;
  return page;
}

void PagePool::give_back(Page* page) {
  page->slab->spare.push_back(page);
  spare_ += page_bytes_;
}

void PagePool::shrink(std::int64_t bytes) {
  for (auto slab = slabs_.end(); bytes > 0 && slab != slabs_.begin();) {
    --slab;
    if (!(*slab)->unused()) continue;
    const std::int64_t gone = page_bytes_ * static_cast<std::int64_t>((*slab)->begun);
    spare_ -= gone;
    bytes -= gone;
    slab = slabs_.erase(slab);
  }
}

}  // namespace gossamer
