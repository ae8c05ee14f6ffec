// Whose turn it is where native code takes one call at a time.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "bindings/bindings.h"

namespace gossamer {

// The engine takes one call at a time. Python threads queue here without the GIL, and still hear Ctrl-C.
class Turn {
 public:
  // Runs f without the GIL when it is this thread's turn.
  template <class F>
  auto take(const F& f) {
    const WithoutGil released;
    if (pid_ != getpid()) {
      if (holder_ != std::thread::id())
        throw std::runtime_error("the process was forked during a call of this decoder; load the model again");
      pid_ = getpid();
    }
    if (holder_ == std::this_thread::get_id())
      throw std::runtime_error("this thread is inside a call of this decoder already");
    SignalPoll poll;
    // By the system's clock, since ThreadSanitizer does not see locks that are taken by the steady one.
    while (!mutex_.try_lock_until(std::chrono::system_clock::now() + std::chrono::milliseconds(50))) poll();
    const Hold hold{*this};
    return f();
  }

  // Runs f if nobody has the turn: never waits, and keeps the GIL.
  template <class F>
  void try_take(const F& f) {
    if (holder_ == std::this_thread::get_id() || !mutex_.try_lock()) return;
    const Hold hold{*this};
    f();
  }

 private:
  struct Hold {
    Turn& turn;
    explicit Hold(Turn& t) : turn(t) { turn.holder_ = std::this_thread::get_id(); }
    ~Hold() {
      turn.holder_ = std::thread::id();
      turn.mutex_.unlock();
    }
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;
  };

  std::timed_mutex mutex_;
  std::atomic<std::thread::id> holder_{};
  std::atomic<pid_t> pid_ = getpid();
};

}  // namespace gossamer
