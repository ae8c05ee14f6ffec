// What is added to a linear's product: y += factor * U (V x), factor * D x, or factor * b.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/adapters.h"
#include "engine/step.h"

namespace gossamer {

// U of an adapter's branch of low rank, as `VectorKernels::lift` takes it: in panels of kPanelRows outputs.
class Columns {
 public:
  explicit Columns(const WeightView& u);

  std::size_t bytes() const { return values_.size(); }
  // x[i] += factor * (U inner)[i] for outputs [begin, end), from the first of a panel on; x: all outputs.
  void lift(const VectorKernels& vectors, int begin, int end, const float* inner, float factor, float* x) const;

 private:
  std::size_t panel_bytes() const;

  int rank_;
  FloatType type_;
  Buffer<std::uint8_t> values_;
};

// One of the sum. The model's own are for all tokens, with factor 1; an adapter's for those of sequences that chose it.
// A product is there before any of it is added.
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
  // Whether what is added is a product of the product: the model's own branch of low rank.
  bool lifts() const { return u_ != nullptr; }
  // Of such a one: computes it, with an addition to it.
  void lift(Step& step, const Span& span, const Addition& addition);
  // Adds outputs [begin, end) of one row, times a factor, to x, all its outputs; begin as `Addition::add` has it.
  void add(const VectorKernels& vectors, int begin, int end, std::int64_t row, float factor, float* x) const;

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

// The parts of a linear that are there by their names: "NAME.low_rank_u" [rows][r] with "NAME.low_rank_v" [r][cols];
// "NAME.delta_1", "NAME.delta_2", … [rows][cols]; and, of an adapter, the vector "NAME.bias".
// place: the name of where the linear's outputs go, with so many rows a token.
std::vector<Part> take_parts(int adapter, const std::string& name, const std::string& place, int times, int rows,
                             int cols, Weights& weights, Workspace& workspace);

}  // namespace gossamer
