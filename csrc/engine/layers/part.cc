#include "engine/layers/part.h"

#include <algorithm>
#include <cstring>

#include "common/error.h"
#include "common/half.h"

namespace gossamer {
namespace {

// Two outputs of adapters never wait in one place, since a token may use both.
std::string place_of(const std::string& place, const char* what, const std::string& name, int adapter) {
  // The model's own of all layers share one.
  return adapter == kOwn ? concat(place, ".", what, name) : concat(place, ".", what, ".", adapter, name);
}

}  // namespace

Columns::Columns(const WeightView& u)
    : rank_(u.cols), type_(u.type == ValueType::kBf16 ? FloatType::kBf16 : FloatType::kF32) {
  values_.resize(static_cast<std::size_t>(u.panels) * panel_bytes());
  std::vector<float> row(static_cast<std::size_t>(padded_cols(rank_)));
  for (int r = 0; r < u.rows; ++r) {
    unpack_row(u, r, row.data());
    std::uint8_t* panel = values_.data() + static_cast<std::size_t>(r / kPanelRows) * panel_bytes();
    const int i = r % kPanelRows;
    for (int j = 0; j < rank_; ++j) {
      const float value = row[static_cast<std::size_t>(j)];
      if (type_ == FloatType::kF32) {
        std::memcpy(panel + (j * kPanelRows + i) * 4, &value, 4);
      } else {
        const std::uint16_t half = f32_to_bf16(value);
        std::memcpy(panel + (j / 2 * kPanelRows + i) * 4 + j % 2 * 2, &half, 2);
      }
    }
  }
}

std::size_t Columns::panel_bytes() const {
  const int words = type_ == FloatType::kBf16 ? (rank_ + 1) / 2 : rank_;  // of 32 bits, for an output
  return static_cast<std::size_t>(words) * kPanelRows * 4;
}

void Columns::lift(const VectorKernels& vectors, int begin, int end, const float* inner, float factor, float* x) const {
  const std::uint8_t* columns = values_.data() + static_cast<std::size_t>(begin / kPanelRows) * panel_bytes();
  vectors.lift(x + begin, columns, type_, rank_, inner, factor, end - begin);
}

Part::Part(int adapter, const std::string& name, std::unique_ptr<Linear> u, std::unique_ptr<Linear> v,
           const std::string& place, int times, Workspace& workspace)
    : adapter_(adapter), name_(name + ".low_rank_v"), u_name_(name + ".low_rank_u"), reads_(std::move(v)) {
  product_ = &workspace.matrix(place_of(place, "inner", "", adapter), reads_->rows(), times);
  if (adapter == kOwn) {
    u_ = std::move(u);
    lifted_ = &workspace.matrix(place + ".lifted", u_->rows(), times);
  } else {
    columns_ = std::make_unique<Columns>(u->weight().view());
  }
}

Part::Part(int adapter, const std::string& name, std::unique_ptr<Linear> matrix, const std::string& place, int times,
           Workspace& workspace)
    : adapter_(adapter), name_(name), reads_(std::move(matrix)) {
  const std::string number = name.substr(name.rfind('.'));
  product_ = &workspace.matrix(place_of(place, "added", number, adapter), reads_->rows(), times);
}

Part::Part(int adapter, std::vector<float> bias) : adapter_(adapter), bias_(std::move(bias)) {}

std::int64_t Part::bytes() const {
  std::size_t total = bias_.size() * sizeof(float);
  for (const Linear* linear : {reads_.get(), u_.get()})
    if (linear != nullptr) total += linear->weight().bytes();
  if (columns_) total += columns_->bytes();
  return static_cast<std::int64_t>(total);
}

void Part::add_jobs(std::vector<LinearJob>& jobs, const Span& span) {
  if (reads_) jobs.push_back({reads_.get(), product_->row(span.write), product_->stride(), span.read, span.count});
}

void Part::lift(Step& step, const Span& span, const Addition& addition) {
  const Rows product{product_->row(span.write), span.count, product_->cols(), product_->stride()};
  const LinearJob job{u_.get(), lifted_->row(span.write), lifted_->stride(), 0, span.count, &addition};
  run_linears(step.team, {job}, product, step.inputs);
}

void Part::add(const VectorKernels& vectors, int begin, int end, std::int64_t row, float factor, float* x) const {
  if (columns_) return columns_->lift(vectors, begin, end, product_->row(row), factor, x);
  const float* added = product_ != nullptr ? last().row(row) : bias_.data();
  vectors.add_scaled(x + begin, added + begin, factor, end - begin);
}

void Part::visit(const std::function<void(const std::string&, const Linear&)>& f) const {
  if (u_) f(u_name_, *u_);
  if (reads_) f(name_, *reads_);
}

std::vector<Part> take_parts(int adapter, const std::string& name, const std::string& place, int times, int rows,
                             int cols, Weights& weights, Workspace& workspace) {
  std::vector<Part> parts;
  if (const PackedWeight* found = weights.find(name + ".low_rank_u")) {
    const int rank = found->view().cols;
    std::unique_ptr<Linear> u = weights.take(name + ".low_rank_u", rows, rank);
    std::unique_ptr<Linear> v = weights.take(name + ".low_rank_v", rank, cols);
    parts.emplace_back(adapter, name, std::move(u), std::move(v), place, times, workspace);
  }
  for (int number = 1;; ++number) {
    const std::string delta = name + ".delta_" + std::to_string(number);
    if (weights.find(delta) == nullptr) break;
    parts.emplace_back(adapter, delta, weights.take(delta, rows, cols), place, times, workspace);
  }
  if (adapter != kOwn && weights.has_vector(name + ".bias"))
    parts.emplace_back(adapter, weights.take_vector(name + ".bias", rows));
  return parts;
}

}  // namespace gossamer
