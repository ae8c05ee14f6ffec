// A team of threads that lives as long as a model: short spin, then sleep.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace gossamer {

// What a region runs: `body(begin, end, thread)` for one chunk; `thread` is below the team's size. It must not throw.
// Results must not depend on the split.
using ParallelBody = std::function<void(std::int64_t begin, std::int64_t end, int thread)>;

class ThreadTeam {
 public:
  // threads: at least 1, the caller included; 0 means usable_cores(). Throws std::runtime_error when they cannot be
  // started.
  explicit ThreadTeam(int threads);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int size() const { return size_; }

  // Runs `body` over [0, total) in chunks of whole `grain`s, long ones first, which go to whichever thread is free, and
  // returns when all are done. One call at a time (the owner's duty); restarts the workers after a fork.
  void parallel_for(std::int64_t total, std::int64_t grain, const ParallelBody& body);

 private:
  struct Shared;  // what the workers see; replaced, not reused, after a fork

  void start();
  void stop();
  static void work(Shared& shared, int thread);
  static void run_chunks(Shared& shared, int thread);

  int size_;
  int owner_pid_ = 0;
  std::unique_ptr<Shared> shared_;
};

}  // namespace gossamer
