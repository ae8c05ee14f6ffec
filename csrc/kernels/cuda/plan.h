// How a weight's inputs are shared out among blocks.
#pragma once

#include <algorithm>

#include "kernels/cuda/launch.h"

namespace gossamer::cuda {

// Splits of the inputs, from the weight's size and the GPU's multiprocessors alone, so that results do not depend on
// the number of tokens. A multiprocessor works through its blocks in about the time of their tiles and a start-up worth
// kStart tiles each, and needs kBusy blocks at once to keep enough of the stream in flight. An estimate: to be replaced
// by what a GPU measures.
inline int plan_splits(const DeviceWeight& weight, int multiprocessors) {
  constexpr int kMostSplits = 16;
  constexpr int kStart = 4;
  constexpr int kBusy = 3;
  const int groups = (weight.panels + kLinearWarps - 1) / kLinearWarps;
  const int units = (weight.tiles + kSplitTiles - 1) / kSplitTiles;
  int best = 1;
  int64_t least = INT64_MAX;
  for (int splits = 1; splits <= std::min(units, kMostSplits); ++splits) {
    const int64_t each = (static_cast<int64_t>(groups) * splits + multiprocessors - 1) / multiprocessors;
    const int64_t tiles = (units + splits - 1) / splits * kSplitTiles + kStart;
    const int64_t cost = tiles * std::max<int64_t>(each, kBusy);
    if (cost < least) {
      least = cost;
      best = splits;
    }
  }
  return best;
}

}  // namespace gossamer::cuda
