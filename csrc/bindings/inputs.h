// What comes into a model, out of arrays.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "bindings/bindings.h"
#include "engine/decoder.h"

namespace gossamer {

// Token ids as the caller gave them, copied, so that nothing can change them under a running step.
inline std::vector<std::int32_t> to_tokens(const py::object& ids, int vocab) {
  const auto array = py::array::ensure(ids);
  require(static_cast<bool>(array) && array.ndim() == 1, "token ids must be a vector of integers");
  const char kind = array.dtype().kind();
  require(array.size() == 0 || kind == 'i' || kind == 'u', "token ids must be integers, got dtype ",
          py::str(array.dtype()).cast<std::string>());
  const auto wide = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>::ensure(array);
  std::vector<std::int32_t> tokens;
  tokens.reserve(static_cast<std::size_t>(wide.size()));
  for (py::ssize_t i = 0; i < wide.size(); ++i) {
    const std::int64_t id = wide.at(i);
    require(id >= 0 && id < vocab, "token id ", id, " is outside the vocabulary of ", vocab);
    tokens.push_back(static_cast<std::int32_t>(id));
  }
  return tokens;
}

// Inputs of an encoder, copied.
class Encoded {
 public:
  Encoded(const std::vector<py::object>& inputs, const std::optional<std::vector<py::object>>& types,
          const spec::Transformer& spec) {
    require(!types || types->size() == inputs.size(), "types must be a list of ", inputs.size(), " vectors");
    if (spec.embedding.mel) {
      require(!types, "frames have no types");
      for (const py::object& input : inputs) {
        frames_.push_back(to_floats(input, "frames"));
        const FloatArray& one = frames_.back();
        require(one.ndim() == 2 && one.shape(1) == spec.embedding.mel->bins, "frames must be [frames, ",
                spec.embedding.mel->bins, "]");
        entries_.push_back({nullptr, nullptr, to_int(one.shape(0), "the number of frames"), one.data()});
      }
      return;
    }
    for (const py::object& ids : inputs) tokens_.push_back(to_tokens(ids, spec.vocab));
    if (types)
      for (const py::object& ids : *types) types_.push_back(to_tokens(ids, std::max(spec.embedding.types, 1)));
    for (std::size_t i = 0; i < tokens_.size(); ++i) {
      const std::size_t size = tokens_[i].size();
      require(!types || types_[i].size() == size, "input ", i, " has ", size, " tokens, but other types");
      entries_.push_back({tokens_[i].data(), types ? types_[i].data() : nullptr,
                          to_int(static_cast<py::ssize_t>(size), "the number of tokens")});
    }
  }

  const std::vector<EncodeInput>& entries() const { return entries_; }
  std::int64_t rows() const {
    std::int64_t total = 0;
    for (const EncodeInput& entry : entries_) total += entry.rows();
    return total;
  }

 private:
  std::vector<std::vector<std::int32_t>> tokens_, types_;
  std::vector<FloatArray> frames_;
  std::vector<EncodeInput> entries_;
};

}  // namespace gossamer
