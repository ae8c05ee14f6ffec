// A team of threads that lives as long as a model: short spin, then sleep.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "common/parallel.h"

namespace gossamer {

class ThreadTeam final : public Parallel {
 public:
  // threads: at least 1, the caller included; 0 means usable_cores(). Throws std::runtime_error when they cannot be
  // started.
  explicit ThreadTeam(int threads);
  ~ThreadTeam() override;
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int size() const override { return size_; }

  // Restarts the workers after a fork.
  void parallel_for(std::int64_t total, std::int64_t grain, const ParallelBody& body) override;

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
