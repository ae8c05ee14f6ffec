#include "engine/step.h"

namespace gossamer {

void Probe::read(const std::string& linear, const Matrix& x, int tokens) {
  const auto found = captures_.find(linear);
  if (found == captures_.end()) return;
  std::vector<float>& rows = found->second;
  rows.reserve(static_cast<std::size_t>(tokens_) * static_cast<std::size_t>(x.cols()));
  for (int t = 0; t < tokens; ++t) rows.insert(rows.end(), x.row(t), x.row(t) + x.cols());
  --left_;
}

}  // namespace gossamer
