// Memory straight from the system: zero, not touched yet, and given back when it is let go.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>

#include "common/buffer.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace gossamer {

inline constexpr std::size_t kHugePage = 2 << 20;

// What holds a huge page begins at one, and consists of them where the system gives them.
class Mapping {
 public:
  explicit Mapping(std::size_t bytes) : size_(bytes + kGuard) {
    const std::size_t align = size_ < kHugePage ? 0 : kHugePage;
    mapped_ = size_ + align;
    memory_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
    data_ =
        reinterpret_cast<std::uint8_t*>(align == 0 ? reinterpret_cast<std::uintptr_t>(memory_)
                                                   : round_up(reinterpret_cast<std::uintptr_t>(memory_), kHugePage));
#if defined(MADV_HUGEPAGE)
    if (align != 0) (void)madvise(data_, size_, MADV_HUGEPAGE);  // a wish; small pages do, too
#endif
#if defined(__SANITIZE_ADDRESS__)
    ASAN_POISON_MEMORY_REGION(data_ + bytes, kGuard);
#endif
  }
  ~Mapping() {
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(data_, size_);
#endif
    munmap(memory_, mapped_);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  std::uint8_t* data() const { return data_; }

 private:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr std::size_t kGuard = 4096;  // poisoned, as the allocator would have it
#else
  static constexpr std::size_t kGuard = 0;
#endif
  std::size_t size_;    // from data_ on
  std::size_t mapped_;  // from memory_ on
  void* memory_;
  std::uint8_t* data_;
};

}  // namespace gossamer
