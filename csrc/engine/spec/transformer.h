// A transformer described by its parts, field for field as gossamer.arch.spec has it, which says what they mean: a file
// each, with its fields and what these may be. `visit` names every field; whoever reads a description visits, and
// refuses what is not named here. A name in a table of kernels is its entry there.
#pragma once

#include <memory>

#include "engine/spec/embedding.h"
#include "engine/spec/stack.h"

namespace gossamer::spec {

struct Head {
  bool tied = false;
  bool bias = false;
  float scale = 1;
  std::optional<float> softcap;
  std::optional<int> project;

  template <class Visitor>
  void visit(Visitor& field) {
    field("tied", tied);
    field("bias", bias);
    field("scale", scale);
    field("softcap", softcap);
    field("project", project);
  }
};

struct Transformer {
  int hidden = 0;
  int vocab = 0;
  int context = 0;
  Embedding embedding;
  Stack stack;
  std::optional<Head> head;
  std::shared_ptr<const Transformer> encoder;

  template <class Visitor>
  void visit(Visitor& field) {
    field("hidden", hidden);
    field("vocab", vocab);
    field("context", context);
    field("embedding", embedding);
    field("stack", stack);
    field("head", head);
    field("encoder", encoder);
  }
  const Block& block(int layer) const {
    return stack.kinds[static_cast<std::size_t>(stack.layers[static_cast<std::size_t>(layer)])];
  }
};

inline void check(const Head& head, const Embedding& embedding, const Where& where) {
  where.above_zero("scale", head.scale);
  where.above_zero("softcap", head.softcap);
  where.size("project", head.project);
  where.must(!head.tied || head.project == embedding.project, ".project must be the embedding's where it is tied");
}

inline void check(const Transformer& transformer, const Where& where) {
  where.size("hidden", transformer.hidden);
  where.size("vocab", transformer.vocab);
  where.size("context", transformer.context);
  check(transformer.embedding, transformer.hidden, transformer.context, where / "embedding");
  if (transformer.head) check(*transformer.head, transformer.embedding, where / "head");
  check(transformer.stack, transformer.hidden, where / "stack");
  bool reads = false;
  for (const Attention* attention : attentions(transformer.stack)) {
    reads = reads || attention->reads == Reads::kMemory;
    (where / "stack")
        .must(attention->causal || attention->reads == Reads::kMemory || !transformer.head,
              " must be causal in a model with a head");
  }
  where.must(!transformer.embedding.mel || !transformer.head, ".embedding.mel is for an encoder");
  where.must(reads == (transformer.encoder != nullptr),
             ".encoder must be there where a memory is read, and only there");
  where.must(!transformer.embedding.shared || where.path != "transformer", ".embedding.shared is for an encoder");
  if (!transformer.encoder) return;
  const Transformer& encoder = *transformer.encoder;
  const Where inner = where / "encoder";
  inner.must(!encoder.head, ".head must be null");
  inner.must(!encoder.encoder, ".encoder must be null");
  inner.must(encoder.hidden == transformer.hidden, ".hidden must be ", transformer.hidden, ", got ", encoder.hidden);
  inner.must(!encoder.embedding.shared ||
                 (encoder.vocab == transformer.vocab && encoder.embedding.project == transformer.embedding.project),
             ".embedding must have the shape of the one that it shares");
  check(encoder, inner);
}

// Throws InvalidArgument naming the field that is out of range or contradicts another.
inline void validate(const Transformer& transformer) { check(transformer, Where{"transformer"}); }

}  // namespace gossamer::spec
