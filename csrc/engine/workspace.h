// Memory between the parts of a step, shared by all layers: rows of floats by name, and the angles of positions.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/buffer.h"
#include "engine/spec/attention.h"
#include "ops/linear.h"

namespace gossamer {

// Rows of floats with a stride of whole blocks, zero behind the columns.
class Matrix {
 public:
  explicit Matrix(int cols) : cols_(cols), stride_(padded_cols(cols)) {}

  // Room for that many rows. Contents are lost when it grows.
  void reserve(int tokens) {
    memory_.resize(static_cast<std::size_t>(tokens) * static_cast<std::size_t>(stride_) + kSpareBytes);
  }
  int cols() const { return cols_; }
  std::int64_t stride() const { return stride_; }
  float* data() { return memory_.data(); }
  float* row(std::int64_t t) { return memory_.data() + t * stride_; }
  const float* row(std::int64_t t) const { return memory_.data() + t * stride_; }
  Rows rows(int tokens) const { return {memory_.data(), tokens, cols_, stride_}; }

 private:
  Buffer<float> memory_;
  int cols_;
  std::int64_t stride_;
};

// Cosines and sines for the tokens of a chunk.
class Rotary {
 public:
  explicit Rotary(spec::Rope rope) : rope_(std::move(rope)) {}

  const spec::Rope& rope() const { return rope_; }
  int half() const { return static_cast<int>(rope_.inv_freq.size()); }
  const float* cosines(std::int64_t token) const { return cosines_.data() + token * half(); }
  const float* sines(std::int64_t token) const { return sines_.data() + token * half(); }
  void set(Parallel& team, const std::vector<int>& positions);

 private:
  spec::Rope rope_;
  std::vector<float> cosines_, sines_;  // [tokens][half]
};

class Workspace {
 public:
  // One matrix for all who ask for that name and width; it stays where it is, with so many rows a token.
  Matrix& matrix(const std::string& name, int cols, int times = 1);
  // One table for all who rotate alike.
  const Rotary& rotary(const spec::Rope& rope);

  // Makes ready for tokens at these positions.
  void begin(Parallel& team, const std::vector<int>& positions);

 private:
  struct Place {
    Matrix matrix;
    int times = 0;  // rows a token
  };

  std::map<std::pair<std::string, int>, Place> matrices_;
  std::vector<std::unique_ptr<Rotary>> rotaries_;
};

}  // namespace gossamer
