#include "engine/layers/positions.h"

#include <cmath>
#include <vector>

namespace gossamer {
namespace {

class LearnedPositions final : public AddedPositions {
 public:
  LearnedPositions(const spec::Learned& spec, const spec::Transformer& whole, Build& build)
      : table_(build.weights.take("positions", spec.count, whole.hidden)), offset_(spec.offset) {}

  const float* row(int position, float* room) const override {
    unpack_row(table_->weight().view(), position + offset_, room);
    return room;
  }

 private:
  std::unique_ptr<Linear> table_;
  int offset_;  // the row of position 0
};

class Sinusoids final : public AddedPositions {
 public:
  Sinusoids(const spec::Sinusoids& spec, const spec::Transformer& whole, Build& /*build*/)
      : width_(2 * spec.frequencies.size()), table_(static_cast<std::size_t>(whole.context) * width_) {
    const std::size_t half = spec.frequencies.size();
    float* row = table_.data();
    for (int position = 0; position < whole.context; ++position, row += width_) {
      for (std::size_t j = 0; j < half; ++j) {
        const float angle = static_cast<float>(position + spec.offset) * spec.frequencies[j];
        row[j] = std::sin(angle);
        row[half + j] = std::cos(angle);
      }
    }
  }

  const float* row(int position, float* /*room*/) const override {
    return table_.data() + static_cast<std::size_t>(position) * width_;
  }

 private:
  std::size_t width_;
  std::vector<float> table_;  // [context][width]
};

std::unique_ptr<AddedPositions> make(const spec::Learned& spec, const spec::Transformer& whole, Build& build) {
  return std::make_unique<LearnedPositions>(spec, whole, build);
}

std::unique_ptr<AddedPositions> make(const spec::Sinusoids& spec, const spec::Transformer& whole, Build& build) {
  return std::make_unique<Sinusoids>(spec, whole, build);
}

}  // namespace

std::unique_ptr<AddedPositions> make_positions(const spec::Transformer& spec, Build& build) {
  if (!spec.embedding.positions) return nullptr;
  return std::visit([&](const auto& part) { return make(part, spec, build); }, *spec.embedding.positions);
}

}  // namespace gossamer
