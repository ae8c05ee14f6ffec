// What is added to a linear's product: y += factor * U (V x), factor * D x, or factor * b.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/adapters.h"
#include "engine/step.h"

namespace gossamer {

// U of a branch of low rank, as `VectorKernels::lift` takes it: [rows / 64, rounded up][rank][64].
class Columns {
 public:
  explicit Columns(const WeightView& u);

  int rank() const { return rank_; }
  std::size_t bytes() const { return values_.size(); }
  // x[i] += factor * (U inner)[i] for outputs i of piece `piece`; x: all outputs.
  void lift(const VectorKernels& vectors, std::int64_t piece, const float* inner, float factor, float* x) const;

 private:
  int rows_;
  int rank_;
  FloatType type_;
  Buffer<std::uint8_t> values_;
};

// One of the sum. The model's own are for all tokens, with factor 1; an adapter's for those of sequences that chose it.
class Part {
 public:
  // A branch of low rank. The model's own U is multiplied as any weight is.
  Part(int adapter, const std::string& name, std::unique_ptr<Linear> u, std::unique_ptr<Linear> v,
       const std::string& place, int times, Workspace& workspace);
  // A matrix of the linear's shape.
  Part(int adapter, const std::string& name, std::unique_ptr<Linear> matrix, const std::string& place, int times,
       Workspace& workspace);
  // A vector.
  Part(int adapter, std::vector<float> bias);

  int adapter() const { return adapter_; }
  std::int64_t bytes() const;

  // The product that reads some rows of the linear's inputs.
  void add_jobs(std::vector<LinearJob>& jobs, const Span& span);
  // The model's own: the product of the product.
  void lift(Step& step, const Span& span);
  // Adds outputs [64 piece, 64 piece + 64) of one token, times a factor, to x, all its outputs.
  void add(const VectorKernels& vectors, std::int64_t piece, std::int64_t token, float factor, float* x) const;
  // The model's own: adds all outputs of one row.
  void add_all(const VectorKernels& vectors, std::int64_t row, float* x) const;
  // Multiplications that `add` does for an output.
  int cost() const { return columns_ ? columns_->rank() : 1; }

  // Calls f for each weight by its full name.
  void visit(const std::function<void(const std::string&, const Linear&)>& f) const;

 private:
  // What is added: the last product.
  const Matrix& last() const { return lifted_ != nullptr ? *lifted_ : *product_; }

  int adapter_;
  std::string name_, u_name_;
  std::unique_ptr<Linear> reads_;     // V, or the matrix; null: the vector alone
  std::unique_ptr<Linear> u_;         // the model's own U
  std::unique_ptr<Columns> columns_;  // an adapter's U
  std::vector<float> bias_;
  Matrix* product_ = nullptr;  // of `reads_`
  Matrix* lifted_ = nullptr;   // of `u_`
};

constexpr std::int64_t pieces_of(std::int64_t rows) { return (rows + kLiftRows - 1) / kLiftRows; }

// The parts of a linear that are there by their names: "NAME.low_rank_u" [rows][r] with "NAME.low_rank_v" [r][cols];
// "NAME.delta_1", "NAME.delta_2", … [rows][cols]; and, of an adapter, the vector "NAME.bias".
// place: the name of where the linear's outputs go, with so many rows a token.
std::vector<Part> take_parts(int adapter, const std::string& name, const std::string& place, int times, int rows,
                             int cols, Weights& weights, Workspace& workspace);

}  // namespace gossamer
