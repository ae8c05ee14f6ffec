// The matrices of mixers.
#pragma once

#include "engine/spec/where.h"

namespace gossamer::spec {

// A matrix of a mixer by its short name.
struct Linear {
  std::string name;
  int rows = 0;
  int cols = 0;
  bool bias = false;
  std::string place = {};  // the name of where outputs go, which several may share; empty: its own
  int chosen = 1;          // of every `alternatives` such matrices, so many are read for a token
  int alternatives = 1;
  bool memory = false;  // it reads what an encoder gave, once a text
};

// Linears that read the same inputs; an attention's second of three reads the memory. The output of a mixer's last
// group, one linear, joins the stream.
using Group = std::vector<Linear>;

inline void check_biases(const std::vector<std::string>& biases, const std::vector<Group>& groups, const Where& where) {
  std::vector<std::string> known;
  for (const Group& group : groups)
    for (const Linear& linear : group) known.push_back(linear.name);
  for (std::size_t i = 0; i < biases.size(); ++i) {
    where.must(has(known, biases[i]), ".biases: no linear is called '", biases[i], "'");
    where.must(std::count(biases.begin(), biases.end(), biases[i]) == 1, ".biases names '", biases[i], "' twice");
  }
}

}  // namespace gossamer::spec
