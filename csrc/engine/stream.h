// The residual stream of a chunk: what branches read, and what they add to it.
#pragma once

#include <cstring>
#include <vector>

#include "engine/layers/norm.h"
#include "ops/tokens.h"

namespace gossamer {

// What a branch adds to the stream, and what happens on the way.
struct Update {
  Matrix* delta = nullptr;
  const NormLayer* behind = nullptr;     // of the delta; null: none
  float scale = 1;                       // of the delta
  const NormLayer* after_sum = nullptr;  // of the stream
  float after_scale = 1;                 // of the stream, last of all
};

// What was added waits, so that sums and norms are one pass over a row. Deltas are of no use once they are read.
class ResidualStream {
 public:
  // rows: [tokens], each `stride` floats from the next.
  ResidualStream(Step& step, float* rows, std::int64_t stride, int cols)
      : team_(step.team), vectors_(step.vectors), rows_(rows), stride_(stride), cols_(cols), tokens_(step.tokens()) {}

  void add(const Update& update) { pending_.push_back(update); }

  // The rows, normed where there is a norm, in `out`.
  void read(const NormLayer* norm, Matrix& out) {
    for_tokens(team_, tokens_, [&](std::int64_t t) { read_row(t, norm, out.row(t)); });
    pending_.clear();
  }
  // One row of it; what waits goes on waiting, so that no row may be read like this twice.
  void read_row(std::int64_t token, const NormLayer* norm, float* out) {
    const float* row = settle_row(token);
    if (norm != nullptr)
      norm->run(row, out);
    else
      std::memcpy(out, row, sizeof(float) * static_cast<std::size_t>(cols_));
  }
  // Adds what waits.
  void settle() {
    if (pending_.empty()) return;
    for_tokens(team_, tokens_, [&](std::int64_t t) { (void)settle_row(t); });
    pending_.clear();
  }

 private:
  const float* settle_row(std::int64_t token) {
    float* row = rows_ + token * stride_;
    for (const Update& update : pending_) {
      float* delta = update.delta->row(token);
      if (update.behind != nullptr) update.behind->run(delta, delta);
      if (update.scale != 1) vectors_.scale(delta, update.scale, cols_);
      vectors_.add(row, delta, cols_);
      if (update.after_sum != nullptr) update.after_sum->run(row, row);
      if (update.after_scale != 1) vectors_.scale(row, update.after_scale, cols_);
    }
    return row;
  }

  Parallel& team_;
  const VectorKernels& vectors_;
  float* rows_;
  std::int64_t stride_;
  int cols_;
  int tokens_;
  std::vector<Update> pending_;
};

}  // namespace gossamer
