#include "engine/stack.h"

namespace gossamer {

Stack::Stack(const spec::Stack& spec, Build& build) {
  int kv_layer = 0;
  for (std::size_t i = 0; i < spec.layers.size(); ++i)
    blocks_.emplace_back(spec.kinds[static_cast<std::size_t>(spec.layers[i])], "layers." + std::to_string(i) + ".",
                         kv_layer, build);
}

void Stack::run(Step& step, ResidualStream& stream, const Poll& poll) {
  for (Block& block : blocks_) {
    poll();
    if (!block.run(step, stream)) return;
  }
}

std::vector<KvShape> kv_shapes(const spec::Transformer& spec) {
  std::vector<KvShape> shapes;
  for (int layer = 0; layer < static_cast<int>(spec.stack.layers.size()); ++layer)
    for (const spec::Branch& branch : spec.block(layer).branches)
      for (const KvShape& shape : kv_shapes(branch.mixer)) shapes.push_back(shape);
  return shapes;
}

}  // namespace gossamer
