#include "common/thread_team.h"

#include <unistd.h>

#include <algorithm>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "common/countdown.h"
#include "common/cpu_info.h"
#include "common/error.h"

namespace gossamer {

// A region is published as one word, so that a thread which comes late can tell from the ticket alone whether a chunk
// is left: low 20 bits the next chunk, then 20 bits how many there are. What else describes a region is read only by
// threads that hold one of its chunks, and is not written again before all chunks are done. So a region never waits for
// a worker that has been put aside by the OS, unless it holds a chunk.
constexpr int kChunkBits = 20;
constexpr std::uint64_t kChunkMask = (std::uint64_t{1} << kChunkBits) - 1;
constexpr std::int64_t kMostChunks = std::int64_t{1}
                                     << (kChunkBits - 1);  // tickets beyond the last chunk must not overflow

struct ThreadTeam::Shared {
  alignas(64) std::atomic<std::uint64_t> ticket{0};
  alignas(64) std::atomic<std::uint32_t> epoch{0};  // one more per region; what idle workers watch
  alignas(64) Countdown left;                       // chunks of the region that are not finished
  std::atomic<bool> stop{false};
  std::int64_t total = 0;
  std::int64_t grain = 1;
  Chunks chunks{0, 1};
  const ParallelBody* body = nullptr;
  std::vector<std::thread> workers;
};

ThreadTeam::ThreadTeam(int threads) : size_(threads == 0 ? usable_cores() : threads) {
  require(threads >= 0 && threads <= 1024, "threads must be between 0 and 1024, got ", threads);
  start();
}

void ThreadTeam::start() {
  shared_ = std::make_unique<Shared>();
  owner_pid_ = getpid();
  shared_->workers.reserve(static_cast<std::size_t>(size_));
  try {
    for (int i = 1; i < size_; ++i) shared_->workers.emplace_back([shared = shared_.get(), i] { work(*shared, i); });
  } catch (const std::system_error& error) {
    stop();
    throw std::runtime_error(concat("cannot start ", size_, " threads: ", error.what()));
  } catch (...) {
    stop();
    throw;
  }
}

ThreadTeam::~ThreadTeam() {
  if (owner_pid_ == getpid())
    stop();
  else
    (void)shared_.release();  // forked: the workers do not exist here, and their handles must not be joined
}

void ThreadTeam::stop() {
  shared_->stop.store(true, std::memory_order_release);
  shared_->epoch.fetch_add(1, std::memory_order_release);
  shared_->epoch.notify_all();
  for (std::thread& worker : shared_->workers) worker.join();
  shared_->workers.clear();
}

void ThreadTeam::run_chunks(Shared& shared, int thread) {
  for (;;) {
    const std::uint64_t ticket = shared.ticket.fetch_add(1, std::memory_order_acq_rel);
    const std::uint64_t chunk = ticket & kChunkMask;
    const std::uint64_t count = (ticket >> kChunkBits) & kChunkMask;
    if (chunk >= count) return;
    const auto [first, behind] = shared.chunks[static_cast<std::int64_t>(chunk)];
    const std::int64_t begin = shared.grain * first;
    (*shared.body)(begin, std::min(shared.total, shared.grain * behind), thread);
    shared.left.done(1);
  }
}

void ThreadTeam::work(Shared& shared, int thread) {
  std::uint32_t seen = 0;
  for (;;) {
    const auto changed = [&] { return shared.epoch.load(std::memory_order_acquire) != seen; };
    if (!spin(changed)) {
      while (!changed()) shared.epoch.wait(seen, std::memory_order_acquire);
    }
    seen = shared.epoch.load(std::memory_order_acquire);
    if (shared.stop.load(std::memory_order_acquire)) return;
    run_chunks(shared, thread);
  }
}

void ThreadTeam::parallel_for(std::int64_t total, std::int64_t grain, const ParallelBody& body) {
  if (total <= 0) return;
  grain = std::max({grain, std::int64_t{1}, (total + kMostChunks - 1) / kMostChunks});
  if (size_ == 1 || total <= grain) {
    body(0, total, 0);
    return;
  }
  if (owner_pid_ != getpid()) {
    (void)shared_.release();  // belongs to the parent's threads
    start();
  }
  Shared& shared = *shared_;
  shared.chunks = Chunks((total + grain - 1) / grain, size_);
  const auto count = static_cast<std::uint64_t>(shared.chunks.count());
  shared.total = total;
  shared.grain = grain;
  shared.body = &body;
  shared.left.reset(static_cast<std::int64_t>(count));
  shared.ticket.store(count << kChunkBits, std::memory_order_release);
  shared.epoch.fetch_add(1, std::memory_order_release);
  shared.epoch.notify_all();
  run_chunks(shared, 0);
  shared.left.wait();
}

}  // namespace gossamer
