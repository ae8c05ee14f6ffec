// y = x W^T over packed weights: shapes are checked here, activations prepared, and work cut for the thread team.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "common/buffer.h"
#include "common/countdown.h"
#include "common/parallel.h"
#include "formats/packed_weight.h"
#include "kernels/registry.h"

namespace gossamer {

// Rows of numbers, each `stride` floats from the next; the floats from `cols` to the next multiple of 64 are zero.
struct Rows {
  const float* data = nullptr;
  int tokens = 0;
  int cols = 0;
  std::int64_t stride = 0;
};

constexpr std::int64_t padded_cols(std::int64_t cols) { return (cols + kBlockCols - 1) / kBlockCols * kBlockCols; }

// A packed weight with the kernel chosen for it, once.
class Linear {
 public:
  // activations: "auto" (a8 for integer weights, f32 for float ones), or "f32", "bf16", "a8". A type that the weight
  // has no kernel for falls back to f32, so that one setting can serve a model of mixed weights.
  Linear(std::shared_ptr<const PackedWeight> weight, const std::string& activations);
  // With that kernel. Throws InvalidArgument where it does not take the weight.
  Linear(std::shared_ptr<const PackedWeight> weight, const KernelEntry& kernel);

  const PackedWeight& weight() const { return *weight_; }
  int rows() const { return weight_->view().rows; }
  int cols() const { return weight_->view().cols; }
  ActivationType activation() const { return kernel_->activation; }
  int unit() const { return weight_->view().group == 32 ? 32 : kBlockCols; }
  const char* kernel_name() const { return kernel_->name; }

  std::int64_t pieces() const { return static_cast<std::int64_t>(bounds_.size()) - 1; }

  // The first output of a piece; for the one behind the last, all of them.
  int first_row(std::int64_t piece) const;

  // The streams of pieces [begin, end) for all tokens of x.
  void run_pieces(std::int64_t begin, std::int64_t end, const Activations& x, float* y, std::int64_t y_stride) const;

 private:
  Linear(const std::shared_ptr<const PackedWeight>& weight, ActivationType activation);

  std::shared_ptr<const PackedWeight> weight_;
  const KernelEntry* kernel_;
  std::vector<int> bounds_;  // value streams [bounds[i], bounds[i + 1]) are piece i, of about equal bytes
};

// What is added to a weight's products.
class Addition {
 public:
  virtual ~Addition() = default;
  // Adds to outputs [begin, end) of all rows, whose products are there; both are multiples of kPanelRows, but for an end
  // behind the last output. Threads call it at once, for different outputs. It must not throw.
  virtual void add(int begin, int end) const = 0;
};

struct LinearJob {
  const Linear* linear;
  float* y;                            // [tokens][y_stride]
  std::int64_t y_stride;               // floats
  int first = 0;                       // of the inputs' rows, the one that it begins with
  int tokens = -1;                     // rows; -1: all from there
  const Addition* addition = nullptr;  // to its outputs; it may read those of jobs that have none
};

// Inputs in the forms that weights ask for, each made once per `reset`.
class ActivationCache {
 public:
  // A weight's products, and the inputs of all of them in the form that it asks for.
  struct Prepared {
    const LinearJob* job;
    Activations x;
    std::int64_t first;     // of its pieces, among those of all
    std::int64_t together;  // pieces whose outputs are added to at once; 0: nothing is added
    std::int64_t addition;  // its first one, among those of all

    std::int64_t additions() const { return together == 0 ? 0 : (job->linear->pieces() + together - 1) / together; }
    // The pieces of addition i.
    std::int64_t begin(std::int64_t i) const { return i * together; }
    std::int64_t end(std::int64_t i) const { return std::min((i + 1) * together, job->linear->pieces()); }
  };
  std::vector<Prepared> prepared;  // kept for its memory
  std::vector<Countdown> left;     // pieces of each addition; kept, too

  void reset(const Rows& rows) {
    rows_ = rows;
    made_.clear();
  }
  // unit: inputs that an a8 scale serves; ignored for other types.
  const Activations& get(ActivationType type, int unit, Parallel& team);

 private:
  struct Form {
    Activations x;
    Buffer<std::int8_t> codes;
    Buffer<std::uint16_t> bf16;
    Buffer<float> scales;
    Buffer<std::int32_t> surplus;
  };
  Form& form(ActivationType type, int unit);

  Rows rows_;
  std::vector<std::unique_ptr<Form>> forms_;  // kept from call to call for their memory
  std::vector<Form*> made_;
};

// Runs several weights on the same inputs, or on parts of their rows, as one parallel region, with what is added.
void run_linears(Parallel& team, const std::vector<LinearJob>& jobs, const Rows& x, ActivationCache& cache);

}  // namespace gossamer
