#include "engine/block.h"

namespace gossamer {

Block::Block(const spec::Block& spec, const std::string& prefix, int& kv_layer, Build& build)
    : parallel_(spec.parallel), first_kv_layer_(kv_layer), read_(build.workspace.matrix("normed", build.hidden)) {
  for (const spec::Branch& branch : spec.branches) {
    const std::string norm = prefix + spec::name_of(branch.mixer) + "_norm";
    branches_.push_back(
        {make_mixer(branch.mixer, prefix, kv_layer, build), make_norm(branch.before, norm, build.hidden, build)});
    for (const KvShape& shape : gossamer::kv_shapes(branch.mixer)) kv_shapes_.push_back(shape);
  }
}

Projection* Block::find(const std::string& name) {
  for (const Branch& branch : branches_)
    for (ProjectionGroup& group : branch.mixer->groups())
      for (Projection& projection : group.projections())
        if (projection.full_name() == name) return &projection;
  return nullptr;
}

bool Block::run(Step& step, ResidualStream& stream) {
  deltas_.clear();
  for (const Branch& branch : branches_) {
    stream.read(branch.before ? &*branch.before : nullptr, read_);
    const Matrix* delta = branch.mixer->run(step, read_);
    if (delta == nullptr) return false;
    if (!parallel_)
      stream.add(*delta);
    else
      deltas_.push_back(delta);
  }
  for (const Matrix* delta : deltas_) stream.add(*delta);
  return true;
}

}  // namespace gossamer
