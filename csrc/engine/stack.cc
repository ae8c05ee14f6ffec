#include "engine/stack.h"

#include <algorithm>

namespace gossamer {

Stack::Stack(const spec::Stack& spec, int context, Build& build)
    : norm_(make_norm(spec.norm, "norm", build.hidden, build)) {
  take_relative_bias(spec, context, build);
  KvLayers layers;
  for (std::size_t i = 0; i < spec.layers.size(); ++i)
    blocks_.emplace_back(spec.kinds[static_cast<std::size_t>(spec.layers[i])], "layers." + std::to_string(i) + ".",
                         layers, build);
}

void Stack::take_relative_bias(const spec::Stack& spec, int context, Build& build) {
  constexpr int kSpare = 16;  // that may be read on each side
  build.relative_bias = nullptr;
  const spec::Attention* attention = spec::relative(spec);
  if (attention == nullptr) return;
  const spec::RelativeBias& bias = *attention->relative_bias();
  const std::unique_ptr<Linear> table = build.weights.take("relative_bias", attention->heads, bias.buckets);
  const std::int64_t most = std::int64_t{context} + kSpare;
  build.relative_stride = 2 * most + 1;
  relative_bias_.assign(static_cast<std::size_t>(build.relative_stride * attention->heads), 0.0F);
  std::vector<float> row(static_cast<std::size_t>(padded_cols(bias.buckets)));
  for (int head = 0; head < attention->heads; ++head) {
    unpack_row(table->weight().view(), head, row.data());
    float* middle = relative_bias_.data() + head * build.relative_stride + most;
    const auto value = [&](const std::vector<int>& buckets, std::int64_t distance) {
      const auto last = static_cast<std::int64_t>(buckets.size()) - 1;
      return row[static_cast<std::size_t>(buckets[static_cast<std::size_t>(std::min(distance, last))])];
    };
    for (std::int64_t distance = 0; distance <= most; ++distance) {
      if (!bias.ahead.empty()) middle[distance] = value(bias.ahead, distance);
      middle[-distance] = value(bias.back, distance);
    }
  }
  build.relative_bias = relative_bias_.data() + most;
}

void Stack::run(Step& step, ResidualStream& stream, const Poll& poll) {
  for (Block& block : blocks_) {
    poll();
    if (!block.run(step, stream)) return;
  }
}

std::vector<KvShape> kv_shapes(const spec::Transformer& spec, spec::Reads of) {
  std::vector<KvShape> shapes;
  for (int layer = 0; layer < static_cast<int>(spec.stack.layers.size()); ++layer)
    for (const spec::Branch& branch : spec.block(layer).branches)
      for (const KvShape& shape : kv_shapes(branch.mixer, of)) shapes.push_back(shape);
  return shapes;
}

}  // namespace gossamer
