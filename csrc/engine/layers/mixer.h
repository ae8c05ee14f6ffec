// What a branch computes of the rows that it reads.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/kv_cache.h"
#include "engine/layers/projection.h"
#include "engine/spec/stack.h"

namespace gossamer {

class Mixer {
 public:
  virtual ~Mixer() = default;

  // What joins the stream, a row a token; null when the probe has seen enough.
  virtual Matrix* run(Step& step, const Matrix& x) = 0;

  // Computes what it keeps of a memory, of which x has a row a token; false when the probe has seen enough.
  virtual bool remember(Step& /*step*/, const Matrix& /*x*/) { return true; }

  // What a probe can be asked for beside the inputs of linears.
  virtual std::vector<std::string> captured() const { return {}; }

  // Its linears in the order of the computation.
  std::vector<ProjectionGroup>& groups() { return groups_; }
  const std::vector<ProjectionGroup>& groups() const { return groups_; }

 protected:
  // prefix: of its weights' names, "layers.3.".
  Mixer(const std::vector<spec::Group>& groups, const std::string& prefix, Build& build) {
    for (const spec::Group& group : groups) groups_.emplace_back(group, prefix, build);
  }

  std::vector<ProjectionGroup> groups_;
};

// Layers with keys and values, by what these are of.
struct KvLayers {
  int own = 0;
  int memory = 0;
};

// layers: those before this one; counts it.
std::unique_ptr<Mixer> make_mixer(const spec::Mixer& spec, const std::string& prefix, KvLayers& layers, Build& build);

// What a mixer keeps of every token of its own sequence, or of its memory; none for one that keeps nothing.
std::vector<KvShape> kv_shapes(const spec::Mixer& spec, spec::Reads of);

}  // namespace gossamer
