// Cache-line aligned memory.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace gossamer {

inline constexpr std::size_t kCacheLine = 64;

constexpr std::size_t round_up(std::size_t value, std::size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// An owning array of trivial elements, 64-byte aligned, zeroed when it grows.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t size) { resize(size); }

  // Contents are lost when the size grows past the capacity; new memory is zero.
  void resize(std::size_t size) {
    if (size > capacity_) {
      const std::size_t bytes = round_up(size * sizeof(T) + kCacheLine, kCacheLine);
      void* memory = std::aligned_alloc(kCacheLine, bytes);
      if (memory == nullptr) throw std::bad_alloc();
      std::memset(memory, 0, bytes);
      data_.reset(static_cast<T*>(memory));
      capacity_ = size;
    }
    size_ = size;
  }

  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  std::size_t size() const { return size_; }
  T& operator[](std::size_t i) { return data_.get()[i]; }
  const T& operator[](std::size_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
  std::size_t size_ = 0;
  std::size_t capacity_ = 0;
};

}  // namespace gossamer
