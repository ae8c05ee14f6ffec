#include "common/thread_team.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <system_error>

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

struct ThreadTeam::Shared {
  alignas(64) std::atomic<std::uint32_t> epoch{0};  // one more per region; odd bits carry no meaning
  alignas(64) std::atomic<std::int64_t> next{0};    // next chunk
  alignas(64) std::atomic<int> busy{0};             // workers still in the region
  std::atomic<bool> stop{false};
  std::int64_t count = 0;
  std::int64_t grain = 1;
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
  try {
    for (int i = 1; i < size_; ++i) shared_->workers.emplace_back([shared = shared_.get(), i] { work(*shared, i); });
  } catch (const std::system_error& error) {
    stop();
    throw std::runtime_error(concat("cannot start ", size_, " threads: ", error.what()));
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
}

void ThreadTeam::run_chunks(Shared& shared, int thread) {
  const std::int64_t count = shared.count;
  const std::int64_t grain = shared.grain;
  for (;;) {
    const std::int64_t begin = shared.next.fetch_add(grain, std::memory_order_relaxed);
    if (begin >= count) return;
    (*shared.body)(begin, std::min(count, begin + grain), thread);
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
    if (shared.busy.fetch_sub(1, std::memory_order_acq_rel) == 1) shared.busy.notify_one();
  }
}

void ThreadTeam::parallel_for(std::int64_t count, std::int64_t grain, const ParallelBody& body) {
  if (count <= 0) return;
  if (size_ == 1 || count <= grain) {
    body(0, count, 0);
    return;
  }
  if (owner_pid_ != getpid()) {
    (void)shared_.release();  // belongs to the parent's threads
    start();
  }
  Shared& shared = *shared_;
  shared.count = count;
  shared.grain = std::max<std::int64_t>(1, grain);
  shared.body = &body;
  shared.next.store(0, std::memory_order_relaxed);
  shared.busy.store(size_ - 1, std::memory_order_relaxed);
  shared.epoch.fetch_add(1, std::memory_order_release);
  shared.epoch.notify_all();
  run_chunks(shared, 0);
  const auto done = [&] { return shared.busy.load(std::memory_order_acquire) == 0; };
  if (!spin(done)) {
    for (int left = shared.busy.load(std::memory_order_acquire); left != 0; left = shared.busy.load(std::memory_order_acquire))
      shared.busy.wait(left, std::memory_order_acquire);
  }
}

}  // namespace gossamer
