#include "ops/timing.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <random>

#include "common/buffer.h"
#include "common/error.h"
#include "common/mapping.h"
#include "common/thread_team.h"
#include "kernels/reads.h"
#include "ops/linear.h"

namespace gossamer {
namespace {

constexpr std::int64_t kMostBytes = std::int64_t{1} << 46;
constexpr std::int64_t kReadChunk = 256 << 10;  // small enough to balance, large enough that picking costs nothing

// Seconds of each of `repeats` calls.
std::vector<double> time_passes(int repeats, const std::function<void()>& poll, const std::function<void()>& pass) {
  require(repeats >= 1, "repeats must be at least 1, got ", repeats);
  std::vector<double> seconds;
  for (int i = 0; i < repeats; ++i) {
    poll();
    const auto start = std::chrono::steady_clock::now();
    pass();
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return seconds;
}

// Inputs of one width, [batch][padded].
struct Inputs {
  Buffer<float> memory;
  Rows rows;

  Inputs(const LinearTiming& timing, int cols) {
    const std::int64_t stride = padded_cols(cols);
    memory.resize(static_cast<std::size_t>(timing.batch) * static_cast<std::size_t>(stride) + kSpareBytes);
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (int t = 0; t < timing.batch; ++t) {
      float* row = memory.data() + t * stride;
      if (timing.x != nullptr)
        std::copy_n(timing.x + static_cast<std::int64_t>(t) * cols, cols, row);
      else
        std::generate_n(row, cols, [&] { return normal(random); });
    }
    rows = {memory.data(), timing.batch, cols, stride};
  }
};

}  // namespace

std::vector<double> time_reads(std::int64_t bytes, int threads, bool prefetch, int repeats,
                               const std::function<void()>& poll) {
  require(bytes >= 1 && bytes <= kMostBytes, "size must be between 1 and ", kMostBytes, ", got ", bytes);
  ThreadTeam team(threads);
  const std::int64_t size = (bytes + kReadStep - 1) / kReadStep * kReadStep;
  const Mapping memory(static_cast<std::size_t>(size));
  team.parallel_for(size, kReadChunk, [&](std::int64_t begin, std::int64_t end, int) {
    std::fill(memory.data() + begin, memory.data() + end, std::uint8_t{1});  // memory never written is one zero page
  });
  const ReadKernel kernel = prefetch ? read_kernels().prefetched : read_kernels().plain;
  std::atomic<std::uint64_t> sum{0};  // so that the compiler takes no read for idle
  return time_passes(repeats, poll, [&] {
    team.parallel_for(size, kReadChunk, [&](std::int64_t begin, std::int64_t end, int) {
      sum.fetch_xor(kernel(memory.data() + begin, end - begin), std::memory_order_relaxed);
    });
  });
}

LinearTimes time_linears(const LinearTiming& timing, const std::function<void()>& poll) {
  require(!timing.groups.empty(), "weights are missing: the list is empty");
  require(timing.batch >= 1, "batch must be at least 1, got ", timing.batch);
  const KernelEntry* kernel = timing.kernel.empty() ? nullptr : &kernel_named(timing.kernel);

  struct Group {
    std::vector<Linear> linears;
    std::vector<LinearJob> jobs;
    const Rows* x;
  };
  std::map<int, Inputs> inputs;
  std::vector<Group> groups(timing.groups.size());
  std::size_t most_rows = 0;
  for (std::size_t g = 0; g < groups.size(); ++g) {
    require(!timing.groups[g].empty(), "group ", g, " of the weights is empty");
    std::size_t rows = 0;
    for (const auto& weight : timing.groups[g]) {
      const WeightView& view = weight->view();
      require(timing.x == nullptr || view.cols == timing.cols, "x must have ", view.cols, " columns, got ",
              timing.cols);
      require(view.cols == timing.groups[g].front()->view().cols, "weights of one group must have equal columns, got ",
              timing.groups[g].front()->view().cols, " and ", view.cols);
      if (kernel == nullptr)
        groups[g].linears.emplace_back(weight, timing.activations);
      else
        groups[g].linears.emplace_back(weight, *kernel);
      rows += static_cast<std::size_t>(view.rows);
    }
    const int cols = groups[g].linears.front().cols();
    groups[g].x = &inputs.try_emplace(cols, timing, cols).first->second.rows;
    most_rows = std::max(most_rows, rows);
  }
  // Outputs of a group lie behind one another, and every group uses the same memory, as in a decoder.
  const auto batch = static_cast<std::size_t>(timing.batch);
  std::vector<float> y(batch * most_rows);
  for (Group& group : groups) {
    float* next = y.data();
    for (const Linear& linear : group.linears) {
      group.jobs.push_back({&linear, next, linear.rows()});
      next += batch * static_cast<std::size_t>(linear.rows());
    }
  }

  ThreadTeam team(timing.threads);
  ActivationCache cache;
  LinearTimes times;
  times.seconds = time_passes(timing.repeats, poll, [&] {
    for (const Group& group : groups) run_linears(team, group.jobs, *group.x, cache);
  });
  const LinearJob& last = groups.back().jobs.back();
  times.y.assign(last.y, last.y + batch * static_cast<std::size_t>(last.linear->rows()));
  return times;
}

}  // namespace gossamer
