#include "engine/workspace.h"

#include <algorithm>
#include <cmath>

#include "ops/tokens.h"

namespace gossamer {

// Angles are taken as float products, as the reference implementations do.
void Rotary::set(Parallel& team, const std::vector<int>& positions) {
  const auto count = static_cast<std::size_t>(half());
  cosines_.resize(positions.size() * count);
  sines_.resize(positions.size() * count);
  for_tokens(team, static_cast<std::int64_t>(positions.size()), [&](std::int64_t t) {
    const auto token = static_cast<std::size_t>(t);
    for (std::size_t j = 0; j < count; ++j) {
      const float angle = static_cast<float>(positions[token]) * rope_.inv_freq[j];
      cosines_[token * count + j] = std::cos(angle) * rope_.scale;
      sines_[token * count + j] = std::sin(angle) * rope_.scale;
    }
  });
}

Matrix& Workspace::matrix(const std::string& name, int cols, int times) {
  Place& place = matrices_.try_emplace({name, cols}, Place{Matrix(cols)}).first->second;
  place.times = std::max(place.times, times);
  return place.matrix;
}

const Rotary& Workspace::rotary(const spec::Rope& rope) {
  for (const auto& rotary : rotaries_)
    if (rotary->rope() == rope) return *rotary;
  return *rotaries_.emplace_back(std::make_unique<Rotary>(rope));
}

void Workspace::begin(Parallel& team, const std::vector<int>& positions) {
  for (auto& [unused, place] : matrices_) place.matrix.reserve(static_cast<int>(positions.size()) * place.times);
  for (const auto& rotary : rotaries_) rotary->set(team, positions);
}

}  // namespace gossamer
