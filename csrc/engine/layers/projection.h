// Linears of a mixer. Each is a sum of parts: a packed weight, a branch of low rank, a bias.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/spec.h"
#include "engine/step.h"

namespace gossamer {

class Projection {
 public:
  // prefix: of the full name, "layers.3.". A branch of low rank, y = W x + U (V x), is there where a weight
  // "layers.3.q.low_rank_u" [rows][r] is, and then "layers.3.q.low_rank_v" [r][cols].
  Projection(const spec::Linear& spec, const std::string& prefix, Build& build);

  const std::string& name() const { return name_; }            // "q"
  const std::string& full_name() const { return full_name_; }  // "layers.3.q"
  Matrix& out() { return *out_; }

  // Products of the group's inputs.
  void add_jobs(std::vector<LinearJob>& jobs);
  // Products of products.
  void lift(Step& step);
  bool has_sums() const { return u_ != nullptr || !bias_.empty(); }
  // Adds to the weight's product, for one token, what else there is.
  void sum(const VectorKernels& vectors, std::int64_t token);

  // Calls f for each weight by its full name.
  void visit(const std::function<void(const std::string&, const Linear&)>& f) const;
  // Throws InvalidArgument when the shape is another.
  void set_weight(std::shared_ptr<const PackedWeight> weight, const std::string& activations);

 private:
  std::string name_;
  std::string full_name_;
  std::unique_ptr<Linear> weight_;
  std::unique_ptr<Linear> u_, v_;  // null: no branch
  Matrix* inner_ = nullptr;        // V x
  Matrix* lifted_ = nullptr;       // U (V x)
  std::vector<float> bias_;        // empty: none
  Matrix* out_;
};

// Those that read the same inputs, whose weights run as one parallel region.
class ProjectionGroup {
 public:
  ProjectionGroup(const spec::Group& spec, const std::string& prefix, Build& build);

  // False when the probe has seen enough; then nothing was computed.
  bool run(Step& step, const Matrix& x);
  Projection& operator[](std::size_t i) { return projections_[i]; }
  std::vector<Projection>& projections() { return projections_; }
  const std::vector<Projection>& projections() const { return projections_; }

 private:
  std::vector<Projection> projections_;
  std::vector<LinearJob> jobs_;  // kept for its memory
  bool has_sums_ = false;
};

}  // namespace gossamer
