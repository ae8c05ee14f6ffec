// Memory straight from the system: zero, not touched yet, and given back when it is let go.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace gossamer {

class Mapping {
 public:
  explicit Mapping(std::size_t bytes) : size_(bytes + kGuard) {
    memory_ = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
#if defined(__SANITIZE_ADDRESS__)
    ASAN_POISON_MEMORY_REGION(data() + bytes, kGuard);
#endif
  }
  ~Mapping() {
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(memory_, size_);
#endif
    munmap(memory_, size_);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  std::uint8_t* data() const { return static_cast<std::uint8_t*>(memory_); }

 private:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr std::size_t kGuard = 4096;  // poisoned, as the allocator would have it
#else
  static constexpr std::size_t kGuard = 0;
#endif
  std::size_t size_;
  void* memory_;
};

}  // namespace gossamer
