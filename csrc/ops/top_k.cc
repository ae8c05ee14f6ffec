#include "ops/top_k.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "ops/tokens.h"

namespace gossamer {
namespace {

// Whether value a at i stands before value b at j.
bool before(float a, std::int32_t i, float b, std::int32_t j) {
  const bool nan = std::isnan(a);
  if (nan != std::isnan(b)) return nan;
  return nan || a == b ? i < j : a > b;
}

}  // namespace

void top_k(Parallel& team, const float* x, int rows, std::int64_t n, int k, std::int32_t* ids, float* values) {
  // A region's body must not throw, so that memory is had before.
  std::vector<std::int32_t> heaps(static_cast<std::size_t>(rows) * static_cast<std::size_t>(k));
  for_tokens(team, rows, [&](std::int64_t r) {
    const float* row = x + r * n;
    const auto order = [row](std::int32_t i, std::int32_t j) { return before(row[i], i, row[j], j); };
    std::int32_t* heap = heaps.data() + r * k;  // its first is the one that goes next
    std::iota(heap, heap + k, 0);
    std::make_heap(heap, heap + k, order);
    for (auto i = static_cast<std::int32_t>(k); i < n; ++i) {
      if (row[i] < row[heap[0]] || !order(i, heap[0])) continue;
      std::pop_heap(heap, heap + k, order);
      heap[k - 1] = i;
      std::push_heap(heap, heap + k, order);
    }
    std::sort_heap(heap, heap + k, order);
    for (int j = 0; j < k; ++j) {
      ids[r * k + j] = heap[j];
      values[r * k + j] = row[heap[j]];
    }
  });
}

}  // namespace gossamer
