// Waiting for other threads of a team: a short spin, then sleep.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gossamer {

// A decode step has a few hundred short regions, so a thread spins between them; an idle model must cost nothing, so it
// then sleeps. The clock is read rarely: a spin is about a nanosecond, a clock read twenty.
constexpr auto kSpin = std::chrono::microseconds(100);
constexpr int kSpinsPerClock = 64;

// Spins until `done()` or for kSpin; returns whether done.
template <class Done>
bool spin(const Done& done) {
  if (done()) return true;
  const auto start = std::chrono::steady_clock::now();
  do {
    for (int i = 0; i < kSpinsPerClock; ++i) {
      if (done()) return true;
#if defined(__x86_64__)
      _mm_pause();
#endif
    }
  } while (std::chrono::steady_clock::now() - start < kSpin);
  return done();
}

// Work that is left, counted down by the threads that do it. Who has waited sees what they wrote.
class Countdown {
 public:
  explicit Countdown(std::int64_t count = 0) { reset(count); }

  // While nobody counts or waits.
  void reset(std::int64_t count) { left_.store(static_cast<std::uint32_t>(count), std::memory_order_relaxed); }
  void done(std::int64_t count) {
    const auto by = static_cast<std::uint32_t>(count);
    if (left_.fetch_sub(by, std::memory_order_acq_rel) == by) left_.notify_all();
  }
  // Until nothing is left.
  void wait() const {
    if (spin([this] { return left_.load(std::memory_order_acquire) == 0; })) return;
    for (std::uint32_t left = left_.load(std::memory_order_acquire); left != 0;
         left = left_.load(std::memory_order_acquire))
      left_.wait(left, std::memory_order_acquire);
  }

 private:
  std::atomic<std::uint32_t> left_;  // 32 bits, which the system waits for
};

}  // namespace gossamer
