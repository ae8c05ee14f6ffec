// How tokens, or frames of sound, become the stream.
#pragma once

#include <variant>

#include "engine/spec/norm.h"

namespace gossamer::spec {

struct Learned {
  static constexpr const char* kPart = "learned";
  int count = 0;
  int offset = 0;

  template <class Visitor>
  void visit(Visitor& field) {
    field("count", count);
    field("offset", offset);
  }
};

struct Sinusoids {
  static constexpr const char* kPart = "sinusoids";
  std::vector<float> frequencies;
  int offset = 0;

  template <class Visitor>
  void visit(Visitor& field) {
    field("frequencies", frequencies);
    field("offset", offset);
  }
};

struct Mel {
  int bins = 0;

  template <class Visitor>
  void visit(Visitor& field) {
    field("bins", bins);
  }
};

struct Embedding {
  std::optional<std::variant<Learned, Sinusoids>> positions;
  float scale = 1;
  std::optional<int> project;
  std::optional<Norm> norm;
  int types = 0;
  bool shared = false;
  std::optional<Mel> mel;

  template <class Visitor>
  void visit(Visitor& field) {
    field("positions", positions);
    field("scale", scale);
    field("project", project);
    field("norm", norm);
    field("types", types);
    field("shared", shared);
    field("mel", mel);
  }
};

inline void check(const Learned& learned, int, int context, const Where& where) {
  where.size("count", learned.count);
  where.must(learned.offset >= 0 && learned.offset < learned.count, ".offset must be below ", learned.count, ", got ",
             learned.offset);
  where.must(context <= learned.count - learned.offset, " has ", learned.count - learned.offset,
             " positions, fewer than the context of ", context);
}

inline void check(const Sinusoids& sinusoids, int hidden, int, const Where& where) {
  where.must(sinusoids.frequencies.size() * 2 == static_cast<std::size_t>(hidden), ".frequencies must be ", hidden / 2,
             " numbers, got ", sinusoids.frequencies.size());
  for (const float f : sinusoids.frequencies)
    where.must(std::isfinite(f), ".frequencies holds a value that is not finite");
  where.must(sinusoids.offset >= 0 && sinusoids.offset <= kLargest, ".offset is out of range: ", sinusoids.offset);
}

inline void check(const Embedding& embedding, int hidden, int context, const Where& where) {
  if (embedding.positions)
    std::visit([&](const auto& part) { check(part, hidden, context, where / "positions"); }, *embedding.positions);
  if (embedding.mel) {
    where.size("mel.bins", embedding.mel->bins);
    where.must(!embedding.project && !embedding.shared && embedding.types == 0 && embedding.scale == 1,
               ".mel goes with neither project, shared, types nor scale");
  }
  where.must(embedding.types >= 0 && embedding.types <= kLargest, ".types is out of range: ", embedding.types);
  where.above_zero("scale", embedding.scale);
  where.size("project", embedding.project);
  check(embedding.norm, where / "norm");
}

}  // namespace gossamer::spec
