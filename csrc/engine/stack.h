// Blocks, one behind the other.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/block.h"
#include "engine/spec/transformer.h"

namespace gossamer {

// Called between layers; throws to stop the call.
using Poll = std::function<void()>;

class Stack {
 public:
  // context: most tokens of a sequence.
  Stack(const spec::Stack& spec, int context, Build& build);

  int layers() const { return static_cast<int>(blocks_.size()); }
  const NormLayer* norm() const { return norm_.get(); }
  Block& operator[](int layer) { return blocks_[static_cast<std::size_t>(layer)]; }
  const std::vector<Block>& blocks() const { return blocks_; }
  std::vector<Block>& blocks() { return blocks_; }

  void run(Step& step, ResidualStream& stream, const Poll& poll);

 private:
  void take_relative_bias(const spec::Stack& spec, int context, Build& build);

  std::unique_ptr<NormLayer> norm_;   // behind the last block
  std::vector<float> relative_bias_;  // AttentionArgs; empty: none
  std::vector<Block> blocks_;
};

// What the layers keep of every token of a sequence, or of its memory, in their order.
std::vector<KvShape> kv_shapes(const spec::Transformer& spec, spec::Reads of = spec::Reads::kSelf);

}  // namespace gossamer
