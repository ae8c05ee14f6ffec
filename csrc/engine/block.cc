#include "engine/block.h"

namespace gossamer {

Block::Block(const spec::Block& spec, const std::string& prefix, KvLayers& layers, Build& build)
    : parallel_(spec.parallel),
      norm_(make_norm(spec.norm, prefix + "norm", build.hidden, build)),
      causal_(spec::causal(spec)),
      first_layers_(layers),
      read_(build.workspace.matrix("normed", build.hidden)) {
  for (const spec::Branch& branch : spec.branches) {
    const std::string own = prefix + spec::name_of(branch.mixer);
    Branch& made = branches_.emplace_back();
    made.mixer = make_mixer(branch.mixer, prefix, layers, build);
    made.before = make_norm(branch.before, own + "_norm", build.hidden, build);
    made.behind = make_norm(branch.behind, own + "_behind", build.hidden, build);
    made.after_sum = make_norm(branch.after_sum, own + "_after_sum", build.hidden, build);
    made.update = {nullptr, made.behind.get(), branch.scale, made.after_sum.get()};
    for (const KvShape& shape : gossamer::kv_shapes(branch.mixer, spec::Reads::kSelf)) kv_shapes_.push_back(shape);
    for (const KvShape& shape : gossamer::kv_shapes(branch.mixer, spec::Reads::kMemory))
      memory_shapes_.push_back(shape);
  }
  if (spec.scalar) branches_.back().update.after_scale = build.weights.take_vector(prefix + "scalar", 1)[0];
}

Projection* Block::find(const std::string& name) {
  for (const Branch& branch : branches_)
    for (ProjectionGroup& group : branch.mixer->groups())
      for (Projection& projection : group.projections())
        if (projection.full_name() == name) return &projection;
  return nullptr;
}

std::vector<std::string> Block::captured() const {
  std::vector<std::string> names;
  visit([&](const Projection& projection) { names.push_back(projection.name()); });
  for (const Branch& branch : branches_)
    for (std::string& name : branch.mixer->captured()) names.push_back(std::move(name));
  return names;
}

bool Block::remember(Step& step, const Matrix& x) {
  for (const Branch& branch : branches_)
    if (!branch.mixer->remember(step, x)) return false;
  return true;
}

bool Block::run(Step& step, ResidualStream& stream) {
  updates_.clear();
  if (norm_) stream.read(norm_.get(), read_);
  for (const Branch& branch : branches_) {
    if (!norm_) stream.read(branch.before.get(), read_);
    Matrix* delta = branch.mixer->run(step, read_);
    if (delta == nullptr) return false;
    Update update = branch.update;
    update.delta = delta;
    if (!parallel_)
      stream.add(update);
    else
      updates_.push_back(update);
  }
  for (const Update& update : updates_) stream.add(update);
  return true;
}

}  // namespace gossamer
