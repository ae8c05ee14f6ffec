// The threads of the process that we are a guest in: an OpenMP runtime that somebody else loaded, found at run time.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <mutex>
#include <optional>
#include <string>

#include "common/parallel.h"
#include "common/thread_team.h"

namespace gossamer {

// The entry points of an OpenMP runtime that regions need. libgomp has them, and libomp and libiomp5 have them for it.
struct OpenMp {
  using Body = void (*)(void*);
  void (*parallel)(Body body, void* data, unsigned threads, unsigned flags);
  int (*thread_num)();
  int (*in_parallel)();
};

// Looks in a library that is loaded, and in those that it needs; loads nothing. Empty where there is none.
std::optional<OpenMp> find_open_mp(const std::string& library);

// Regions as the host runs its own: on the same threads, so that there is never a second team which spins while the
// first one works. A region inside another one runs on the thread that it is on.
class OpenMpThreads final : public Parallel {
 public:
  OpenMpThreads(const OpenMp& runtime, int threads) : runtime_(runtime), size_(threads) {}
  int size() const override { return size_; }
  void parallel_for(std::int64_t total, std::int64_t grain, const ParallelBody& body) override;

 private:
  OpenMp runtime_;
  int size_;
};

// Runs `work(parallel)` on `threads` threads: the host's where `use_open_mp` found any; otherwise on a team that calls
// take turns with, a call that comes while it is busy running alone. A child of a fork has none of the host's threads,
// which the runtime would wait for without an end, and runs on such a team, too.
class HostThreads {
 public:
  bool use_open_mp(const std::string& library) {
    runtime_ = find_open_mp(library);
    runtime_pid_ = getpid();
    return runtime_.has_value();
  }

  template <class Work>
  void run(int threads, const Work& work) {
    Serial serial;
    if (threads <= 1) return work(serial);
    if (runtime_ && runtime_pid_ == getpid()) {
      OpenMpThreads host(*runtime_, threads);
      return work(host);
    }
    const std::unique_lock<std::mutex> mine(mutex_, std::try_to_lock);
    if (!mine) return work(serial);
    if (!team_ || team_->size() != threads) team_.emplace(threads);
    work(*team_);
  }

 private:
  std::optional<OpenMp> runtime_;
  pid_t runtime_pid_ = 0;  // whose threads it has
  std::mutex mutex_;
  std::optional<ThreadTeam> team_;
};

}  // namespace gossamer
