// The largest of a row.
#pragma once

#include <cstdint>

#include "common/parallel.h"

namespace gossamer {

// The k largest of each of `rows` rows of n values, falling, of equal ones the first; NaN counts as the largest, so
// that it is seen. ids and values are [rows][k]; 1 <= k <= n.
void top_k(Parallel& team, const float* x, int rows, std::int64_t n, int k, std::int32_t* ids, float* values);

}  // namespace gossamer
