#include "engine/step.h"

namespace gossamer {

void Probe::read(const std::string& linear, const Matrix& x, const Span& span) {
  const auto found = captures_.find(linear);
  if (found == captures_.end()) return;
  found->second.cols = x.cols();
  std::vector<float>& rows = found->second.values;
  if (!span.routed) rows.reserve(static_cast<std::size_t>(tokens_) * static_cast<std::size_t>(x.cols()));
  for (int t = span.read; t < span.read + span.count; ++t) rows.insert(rows.end(), x.row(t), x.row(t) + x.cols());
  --left_;
}

}  // namespace gossamer
