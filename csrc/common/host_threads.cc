#include "common/host_threads.h"

#include <dlfcn.h>

#include <atomic>
#include <memory>

namespace gossamer {
namespace {

template <class Function>
bool look_up(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

}  // namespace

std::optional<OpenMp> find_open_mp(const std::string& library) {
  // The handle is kept: what was found has to stay loaded.
  void* handle = dlopen(library.c_str(), RTLD_LAZY | RTLD_NOLOAD);
  if (handle == nullptr) return std::nullopt;
  OpenMp runtime{};
  if (look_up(handle, "GOMP_parallel", runtime.parallel) && look_up(handle, "omp_get_thread_num", runtime.thread_num) &&
      look_up(handle, "omp_in_parallel", runtime.in_parallel))
    return runtime;
  dlclose(handle);
  return std::nullopt;
}

void OpenMpThreads::parallel_for(std::int64_t total, std::int64_t grain, const ParallelBody& body) {
  if (total <= 0) return;
  grain = std::max<std::int64_t>(grain, 1);
  const std::int64_t grains = (total + grain - 1) / grain;
  if (size_ == 1 || grains == 1 || runtime_.in_parallel() != 0) {
    body(0, total, 0);
    return;
  }
  struct Region {
    const ParallelBody& body;
    const OpenMp& runtime;
    const Chunks chunks;
    const std::int64_t total, grain, count;
    std::atomic<std::int64_t> next{0};
  };
  const Chunks chunks(grains, size_);
  Region region{body, runtime_, chunks, total, grain, chunks.count()};
  runtime_.parallel(
      [](void* data) {
        auto& mine = *static_cast<Region*>(data);
        const int thread = mine.runtime.thread_num();
        for (;;) {
          const std::int64_t chunk = mine.next.fetch_add(1, std::memory_order_relaxed);
          if (chunk >= mine.count) return;
          const auto [first, behind] = mine.chunks[chunk];
          mine.body(mine.grain * first, std::min(mine.total, mine.grain * behind), thread);
        }
      },
      &region, static_cast<unsigned>(size_), 0);
}

}  // namespace gossamer
