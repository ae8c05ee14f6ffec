// Linears of a mixer. Each is a sum of parts: a packed weight, and what is added to its product for all tokens or for
// those of sequences that chose an adapter.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/layers/part.h"
#include "engine/spec/linear.h"
#include "engine/step.h"

namespace gossamer {

class Projection {
 public:
  // prefix: of the full name, "layers.3.". Its own parts are there as `take_parts` says.
  Projection(const spec::Linear& spec, const std::string& prefix, Build& build);

  const std::string& name() const { return name_; }            // "q"
  const std::string& full_name() const { return full_name_; }  // "layers.3.q"
  int rows() const { return weight_.rows(); }
  int cols() const { return weight_.cols(); }
  Matrix& out() { return *out_; }

  // Products of rows of the group's inputs.
  void add_jobs(std::vector<LinearJob>& jobs, const Span& span);
  // What adapters of the chunk, which has some, add to them.
  void add_adapters(std::vector<LinearJob>& jobs, const Chunk& chunk);
  // Products of products.
  void lift(Step& step, const Span& span);
  bool has_sums() const { return !parts_.empty() || !bias_.empty(); }
  // Adds to a row of the weight's products what else the model has.
  void sum(const VectorKernels& vectors, std::int64_t row);

  // The part of its weights that is read for a token: the chosen ones of alternatives; what reads memories reads none.
  double share() const { return memory_ ? 0 : static_cast<double>(chosen_) / alternatives_; }

  // Pieces of outputs that adapters of the chunk add to; 0 where none does.
  std::int64_t pieces() const { return uses_.empty() ? 0 : pieces_of(rows()); }
  // Multiplications that it takes.
  std::int64_t cost() const;
  // Adds what the adapters of the chunk give.
  void adapt(const VectorKernels& vectors, std::int64_t piece);

  // Calls f for each of the model's own weights by its full name.
  void visit(const std::function<void(const std::string&, const Linear&)>& f) const;
  // Throws InvalidArgument when the shape is another.
  void set_weight(std::shared_ptr<const PackedWeight> weight, const std::string& activations);

  // Parts of an adapter, made of weights by name. Throws InvalidArgument where only some tokens come here.
  std::vector<Part> parts_of(int adapter, Weights& weights, Workspace& workspace) const;
  void add(std::vector<Part> parts);
  void remove(int adapter);

 private:
  // A part that some tokens of the chunk use.
  struct Use {
    Part* part;
    int begin, end;
    float factor;
  };

  // First what every step reads, which comes from memory each time: between two steps all weights went by.
  Linear weight_;
  Matrix* out_;
  std::vector<Part> parts_;    // the model's own
  std::vector<float> bias_;    // empty: none
  std::vector<Part> adapted_;  // of adapters
  std::vector<Use> uses_;      // a token's by rising adapter; kept for its memory
  int chosen_, alternatives_;
  bool memory_;
  std::string name_;
  std::string full_name_;
  std::string place_;  // of what goes to the workspace
};

// Those that read the same inputs, whose weights run as one parallel region.
class ProjectionGroup {
 public:
  ProjectionGroup(const spec::Group& spec, const std::string& prefix, Build& build);

  // All of a step's rows. False when the probe has seen enough; then nothing was computed.
  bool run(Step& step, const Matrix& x);

  // The same in parts, for whoever runs several groups as one region, each on rows of its own: shows them to the probe;
  // asks for products; adds, when these are there, to all rows products of products and then to each row the rest.
  void show(Step& step, const Matrix& x, const Span& span) const;
  void add_jobs(std::vector<LinearJob>& jobs, const Span& span);
  void lift(Step& step, const Span& span);
  void sum(const VectorKernels& vectors, std::int64_t row);
  bool has_sums() const { return has_sums_; }

  Projection& operator[](std::size_t i) { return projections_[i]; }
  std::vector<Projection>& projections() { return projections_; }
  const std::vector<Projection>& projections() const { return projections_; }

 private:
  // What adapters add, outputs of all linears in one region.
  void adapt(Step& step);

  std::vector<Projection> projections_;
  std::vector<LinearJob> jobs_;  // kept for its memory
  bool has_sums_ = false;
};

}  // namespace gossamer
