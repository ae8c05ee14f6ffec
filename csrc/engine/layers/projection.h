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

class Projection final : public Addition {
 public:
  // prefix: of the full name, "layers.3.". Its own parts are there as `take_parts` says.
  Projection(const spec::Linear& spec, const std::string& prefix, Build& build);

  const std::string& name() const { return name_; }            // "q"
  const std::string& full_name() const { return full_name_; }  // "layers.3.q"
  int rows() const { return weight_.rows(); }
  int cols() const { return weight_.cols(); }
  Matrix& out() { return *out_; }

  // Products of rows of the group's inputs, with what is added to them: what the model has for all, and what adapters
  // have that tokens of the chunk use.
  void add_jobs(std::vector<LinearJob>& jobs, const Chunk& chunk, const Span& span);
  // When these are there: adds what takes a product of a product, and what comes behind that.
  void lift(Step& step, const Span& span);
  void add(int begin, int end) const override;

  // The part of its weights that is read for a token: the chosen ones of alternatives; what reads memories reads none.
  double share() const { return memory_ ? 0 : static_cast<double>(chosen_) / alternatives_; }

  // Calls f for each of the model's own weights by its full name.
  void visit(const std::function<void(const std::string&, const Linear&)>& f) const;
  // Throws InvalidArgument when the shape is another.
  void set_weight(std::shared_ptr<const PackedWeight> weight, const std::string& activations);

  // Parts of an adapter, made of weights by name. Throws InvalidArgument where only some tokens come here.
  std::vector<Part> parts_of(int adapter, Weights& weights, Workspace& workspace) const;
  void add(std::vector<Part> parts);
  void remove(int adapter);

 private:
  // A part that is added to some rows of the outputs.
  struct Use {
    const Part* part;
    int begin, end;
    float factor;
  };

  // The model's own of low rank; null: there is none.
  Part* lifting();

  // First what every step reads, which comes from memory each time: between two steps all weights went by.
  Linear weight_;
  Matrix* out_;
  const VectorKernels* vectors_;
  std::vector<Part> parts_;    // the model's own; one of low rank is the first
  std::vector<Part> adapted_;  // of adapters
  std::vector<Use> uses_;      // of the products asked for last, in the order of the sum: a row's by rising adapter
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
  // asks for products, with what is added; when these are there, does what takes products of products.
  void show(Step& step, const Matrix& x, const Span& span) const;
  void add_jobs(std::vector<LinearJob>& jobs, const Chunk& chunk, const Span& span);
  void lift(Step& step, const Span& span);

  Projection& operator[](std::size_t i) { return projections_[i]; }
  std::vector<Projection>& projections() { return projections_; }
  const std::vector<Projection>& projections() const { return projections_; }

 private:
  std::vector<Projection> projections_;
  std::vector<LinearJob> jobs_;  // kept for its memory
};

}  // namespace gossamer
