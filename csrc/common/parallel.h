// What ops run their regions on: a team of our own, or the threads of the process that we are in.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <utility>

namespace gossamer {

// What a region runs: `body(begin, end, thread)` for one chunk; `thread` is below the size. It must not throw.
// Results must not depend on the split.
using ParallelBody = std::function<void(std::int64_t begin, std::int64_t end, int thread)>;

class Parallel {
 public:
  virtual ~Parallel() = default;

  // Threads, the caller included.
  virtual int size() const = 0;

  // Runs `body` over [0, total) in chunks of whole `grain`s, long ones first, which go to whichever thread is free, and
  // returns when all are done. Chunks begin in rising order, so that one may wait for what was done in those before it.
  // One call at a time (the owner's duty).
  virtual void parallel_for(std::int64_t total, std::int64_t grain, const ParallelBody& body) = 0;
};

// The calling thread alone.
class Serial final : public Parallel {
 public:
  int size() const override { return 1; }
  void parallel_for(std::int64_t total, std::int64_t, const ParallelBody& body) override {
    if (total > 0) body(0, total, 0);
  }
};

// Chunks come in rounds of one for each thread. A round covers half of what is left, so that most work lies in long
// runs, which memory likes, and what a slow thread can be late with gets smaller and smaller; from one grain on they
// are equal.
class Chunks {
 public:
  // Splits `grains` for `threads` threads.
  Chunks(std::int64_t grains, int threads) : grains_(grains), threads_(threads) {}

  std::int64_t count() const {
    Round round = first();
    while (round.size > 1) round = after(round);
    return round.chunk + (grains_ - round.begin);
  }

  // A chunk's first grain, and the one behind its last.
  std::pair<std::int64_t, std::int64_t> operator[](std::int64_t chunk) const {
    Round round = first();
    while (round.size > 1 && chunk >= round.chunk + threads_) round = after(round);
    const std::int64_t begin = round.begin + (chunk - round.chunk) * round.size;
    return {begin, begin + round.size};
  }

 private:
  struct Round {
    std::int64_t chunk;  // its first
    std::int64_t begin;  // the first grain of that
    std::int64_t size;   // grains of each of its chunks
  };

  Round at(std::int64_t chunk, std::int64_t begin) const {
    return {chunk, begin, std::max<std::int64_t>(1, (grains_ - begin) / (2 * threads_))};
  }
  Round first() const { return at(0, 0); }
  Round after(const Round& round) const { return at(round.chunk + threads_, round.begin + threads_ * round.size); }

  std::int64_t grains_;
  int threads_;
};

}  // namespace gossamer
