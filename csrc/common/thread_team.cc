#include "common/thread_team.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "common/cpu_info.h"
#include "common/error.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gossamer {
namespace {

// A decode step has a few hundred short regions, so a worker spins between them; an idle model must cost nothing, so it
// then sleeps. The clock is read rarely: a spin is about a nanosecond, a clock read twenty.
constexpr auto kSpin = std::chrono::microseconds(100);
constexpr int kSpinsPerClock = 64;

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Spins until `done()` or for kSpin; returns whether done.
template <class Done>
bool spin(const Done& done) {
  const auto start = std::chrono::steady_clock::now();
  do {
    for (int i = 0; i < kSpinsPerClock; ++i) {
      if (done()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() - start < kSpin);
  return done();
}

}  // namespace

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
  alignas(64) std::atomic<std::uint32_t> done{0};   // chunks of the region that are finished
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
    if (shared.done.fetch_add(1, std::memory_order_acq_rel) + 1 == count) shared.done.notify_one();
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
  shared.done.store(0, std::memory_order_relaxed);
  shared.ticket.store(count << kChunkBits, std::memory_order_release);
  shared.epoch.fetch_add(1, std::memory_order_release);
  shared.epoch.notify_all();
  run_chunks(shared, 0);
  const auto finished = [&] { return shared.done.load(std::memory_order_acquire) == count; };
  if (!spin(finished)) {
    for (std::uint32_t seen = shared.done.load(std::memory_order_acquire); seen != count;
         seen = shared.done.load(std::memory_order_acquire))
      shared.done.wait(seen, std::memory_order_acquire);
  }
}

}  // namespace gossamer
