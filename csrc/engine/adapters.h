// Adapters: parts of linears that serve the tokens of those sequences that chose them.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

namespace gossamer {

// An adapter of a sequence, and the factor of what it adds.
struct Choice {
  int adapter;
  float weight;
  bool operator==(const Choice&) const = default;
};

// What a sequence uses, by rising adapter.
using Mix = std::vector<Choice>;

// The number of what is always in use: the model's own parts.
constexpr int kOwn = 0;

// Which adapters there are, and which of them each sequence uses.
class Adapters {
 public:
  // The lowest number that is free; from 1.
  int next() const;
  void add(int adapter, std::int64_t bytes) { bytes_[adapter] = bytes; }
  // Throws InvalidArgument where there is no such adapter.
  std::int64_t bytes(int adapter) const;
  // Throws InvalidArgument where there is no such adapter, or a sequence uses it.
  void remove(int adapter);

  // Choices by rising adapter, without those of weight 0. Throws InvalidArgument naming what is wrong with them.
  Mix checked(Mix mix) const;
  // Throws as `checked`.
  void choose(std::int64_t sequence, Mix mix);
  // Empty where it uses none; stays where it is until the sequence chooses anew or is forgotten.
  const Mix& of(std::int64_t sequence) const;
  void fork(std::int64_t from, std::int64_t to);
  void forget(std::int64_t sequence) { mixes_.erase(sequence); }

 private:
  std::map<int, std::int64_t> bytes_;  // of each adapter
  std::map<std::int64_t, Mix> mixes_;  // of sequences that use some
};

}  // namespace gossamer
