// y = x W^T + b on a host's tensors: any of three float types, read and written where they lie.
#pragma once

#include <cstdint>

#include "common/buffer.h"
#include "common/parallel.h"
#include "kernels/vector_kernels.h"
#include "ops/linear.h"

namespace gossamer {

// [tokens][...] numbers whose rows lie `stride` elements apart; a row's elements follow each other.
struct TensorRows {
  const void* data;
  FloatType type;
  std::int64_t stride;
};

struct TensorLinearArgs {
  std::int64_t tokens;
  TensorRows x;      // [tokens][cols]
  void* y;           // [tokens][rows], of x's type
  const void* bias;  // [rows]; null for none
  FloatType bias_type;
};

// Memory that calls of one thread share, so that none is asked for once it has grown.
class TensorScratch {
 public:
  void run(Parallel& parallel, const Linear& linear, const TensorLinearArgs& args);

 private:
  void run_block(Parallel& parallel, const Linear& linear, const TensorLinearArgs& args, const float* bias);

  Buffer<float> x_;
  Buffer<float> y_;
  Buffer<float> bias_;
  ActivationCache cache_;
};

// The numbers of panels [begin, end), scales applied: out[row - 16 * begin][cols], rows `stride` elements apart.
void expand_panels(Parallel& parallel, const WeightView& weight, int begin, int end, float* out, std::int64_t stride);

}  // namespace gossamer
