// Branches, one behind the other, that read the stream and add to it.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/layers/mixer.h"
#include "engine/layers/norm.h"
#include "engine/stream.h"

namespace gossamer {

class Block {
 public:
  // prefix: of its weights' names, "layers.3."; layers: as for make_mixer.
  Block(const spec::Block& spec, const std::string& prefix, KvLayers& layers, Build& build);

  // False when the probe has seen enough; the stream is then of no use.
  bool run(Step& step, ResidualStream& stream);

  // Computes what it keeps of a memory, of which x has a row a token; false when the probe has seen enough.
  bool remember(Step& step, const Matrix& x);

  // Whether no token sees those behind it.
  bool causal() const { return causal_; }
  const KvLayers& first_layers() const { return first_layers_; }
  const std::vector<KvShape>& kv_shapes() const { return kv_shapes_; }
  const std::vector<KvShape>& memory_shapes() const { return memory_shapes_; }

  // Calls f(projection) for each linear, in the order of the computation.
  template <class F>
  void visit(const F& f) const {
    for (const Branch& branch : branches_)
      for (const ProjectionGroup& group : std::as_const(*branch.mixer).groups())
        for (const Projection& projection : group.projections()) f(projection);
  }
  template <class F>
  void visit(const F& f) {
    for (const Branch& branch : branches_)
      for (ProjectionGroup& group : branch.mixer->groups())
        for (Projection& projection : group.projections()) f(projection);
  }
  // What a probe can be asked for: the inputs of linears, by their short names, and more.
  std::vector<std::string> captured() const;
  // The linear of that full name; null when there is none.
  Projection* find(const std::string& name);

 private:
  struct Branch {
    std::unique_ptr<Mixer> mixer;
    std::unique_ptr<NormLayer> before, behind, after_sum;
    Update update;  // what becomes of the delta
  };

  std::vector<Branch> branches_;
  bool parallel_;                    // all branches read the stream as it came
  std::vector<Update> updates_;      // what they add then; kept for its memory
  std::unique_ptr<NormLayer> norm_;  // of what all of them read
  bool causal_;
  KvLayers first_layers_;
  std::vector<KvShape> kv_shapes_;
  std::vector<KvShape> memory_shapes_;
  Matrix& read_;
};

}  // namespace gossamer
