// What mixers and ends of a description are made of; engine/spec.h has the whole.
#pragma once

#include <cstdint>
#include <optional>
#include <variant>
#include <vector>

#include "kernels/vector_kernels.h"

namespace gossamer::spec {

// The words of an enumeration, in its order.
template <class Enum>
struct Words;

// What norms of queries and keys are taken over.
enum class Over : std::uint8_t { kHead, kRow };
template <>
struct Words<Over> {
  static constexpr const char* list[] = {"head", "row"};
};

// Whose keys and values attention reads.
enum class Reads : std::uint8_t { kSelf, kMemory };
template <>
struct Words<Reads> {
  static constexpr const char* list[] = {"self", "memory"};
};

// What values are.
enum class Values : std::uint8_t { kOwn, kKeys };
template <>
struct Words<Values> {
  static constexpr const char* list[] = {"own", "keys"};
};

// What the weights of experts are a softmax over.
enum class Softmax : std::uint8_t { kAll, kChosen };
template <>
struct Words<Softmax> {
  static constexpr const char* list[] = {"all", "chosen"};
};

struct Norm {
  const NormKernel* kind = nullptr;
  float eps = 0;
  bool bias = false;
  bool weight = true;

  template <class Visitor>
  void visit(Visitor& field) {
    field("kind", kind);
    field("eps", eps);
    field("bias", bias);
    field("weight", weight);
  }
};

struct Rope {
  static constexpr const char* kPart = "rope";
  std::vector<float> inv_freq;
  float scale = 1;
  bool interleaved = false;

  template <class Visitor>
  void visit(Visitor& field) {
    field("inv_freq", inv_freq);
    field("scale", scale);
    field("interleaved", interleaved);
  }
  bool operator==(const Rope&) const = default;
};

struct Alibi {
  static constexpr const char* kPart = "alibi";
  std::vector<float> slopes;

  template <class Visitor>
  void visit(Visitor& field) {
    field("slopes", slopes);
  }
};

struct RelativeBias {
  static constexpr const char* kPart = "relative_bias";
  int buckets = 0;
  std::vector<int> back;
  std::vector<int> ahead;

  template <class Visitor>
  void visit(Visitor& field) {
    field("buckets", buckets);
    field("back", back);
    field("ahead", ahead);
  }
  bool operator==(const RelativeBias&) const = default;
};

using Positions = std::variant<Rope, Alibi, RelativeBias>;

struct QueryScale {
  float beta = 0;
  int length = 0;

  template <class Visitor>
  void visit(Visitor& field) {
    field("beta", beta);
    field("length", length);
  }
};

struct QkNorm {
  Norm norm;
  Over over = Over::kHead;
  bool own = false;

  template <class Visitor>
  void visit(Visitor& field) {
    field("norm", norm);
    field("over", over);
    field("own", own);
  }
};

}  // namespace gossamer::spec
