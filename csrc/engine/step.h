// What the parts of a model share while a chunk of tokens goes through them, and what they are built from.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "engine/batch.h"
#include "engine/weights.h"
#include "engine/workspace.h"

namespace gossamer {

// Rows that were copied out of a block.
struct Capture {
  int cols = 0;
  std::vector<float> values;  // [rows][cols]
};

// The inputs of a block's linears, copied out where asked for, by their names.
using Captures = std::map<std::string, Capture>;

// Some rows: of inputs, from `read` on, and of outputs, from `write` on.
struct Span {
  int read = 0;
  int write = 0;
  int count = 0;
  bool routed = false;  // not all tokens of a chunk
};

// Asked wherever a group of linears reads its inputs.
class Probe {
 public:
  // whole false: once a chunk gave all that is asked for, it need not go on. tokens: of all chunks.
  Probe(Captures& captures, bool whole, int tokens) : captures_(captures), whole_(whole), tokens_(tokens) { begin(); }

  // A chunk begins.
  void begin() { left_ = captures_.size(); }
  // The linear of that short name is about to read rows of x; in every chunk, if it be none.
  void read(const std::string& linear, const Matrix& x, const Span& span);
  bool enough() const { return !whole_ && left_ == 0; }

 private:
  Captures& captures_;
  bool whole_;
  int tokens_;
  std::size_t left_ = 0;
};

// One chunk on its way.
struct Step {
  Parallel& team;
  const VectorKernels& vectors;
  const KvKernels& kv;
  KvCache& cache;
  const Chunk& chunk;
  ActivationCache& inputs;
  Attention& attention;
  Probe* probe = nullptr;
  KvCache* memory = nullptr;   // of those that read one; null: there are none
  int first_kv_layer = 0;      // of the layers with keys and values, the one that the cache has first
  int first_memory_layer = 0;  // the same of those of memories

  int tokens() const { return chunk.tokens(); }
};

// What parts are built from.
struct Build {
  Weights& weights;
  Workspace& workspace;
  const VectorKernels& vectors;
  int hidden;
  // Of the stack that is being built: what attention adds to scores by distance, [heads][bias_stride], from the distance
  // 0 of the first head on; null: nothing.
  const float* relative_bias = nullptr;
  std::int64_t relative_stride = 0;
};

}  // namespace gossamer
