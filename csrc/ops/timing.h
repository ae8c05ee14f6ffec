// What the machine and its kernels reach: timed reads of memory, and timed products without anything between them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "formats/packed_weight.h"

namespace gossamer {

// Seconds of each of `repeats` reads of `bytes` of memory (rounded up to whole steps of the read kernels), which lies
// in huge pages where the system gives them and is first touched by the threads that read it. The first read finds in
// the caches what the writing left there. `poll` is called between passes, and throws to stop. Throws InvalidArgument.
std::vector<double> time_reads(std::int64_t bytes, int threads, bool prefetch, int repeats,
                               const std::function<void()>& poll);

// Weights that take the same inputs, as q, k and v do: one parallel region.
using WeightGroup = std::vector<std::shared_ptr<const PackedWeight>>;

struct LinearTiming {
  std::vector<WeightGroup> groups;
  const float* x = nullptr;  // [batch][cols] for weights of `cols` inputs; null: drawn for each number of inputs
  int batch = 1;
  int cols = 0;
  std::string activations = "auto";
  std::string kernel;  // the one to run instead of the best; empty: the best
  int threads = 0;
  int repeats = 1;
};

struct LinearTimes {
  std::vector<double> seconds;  // of each pass over all groups
  std::vector<float> y;         // [batch][rows] of the last weight
};

// Multiplies through all groups in order, as a decode step does; inputs are brought into the kernels' form within the
// time, once a group. Throws InvalidArgument.
LinearTimes time_linears(const LinearTiming& timing, const std::function<void()>& poll);

}  // namespace gossamer
