// A decoder as plain fields that select variants; see gossamer.arch.spec.DecoderConfig for their meaning.
#pragma once

#include <vector>

namespace gossamer {

struct DecoderConfig {
  int hidden = 0;
  int layers = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int intermediate = 0;
  int vocab = 0;
  int context = 0;
  float norm_eps = 0;
  std::vector<float> inv_freq;
  float rope_scale = 1;
  bool tied = false;

  // Throws InvalidArgument naming the field that is out of range or contradicts another.
  void validate() const;
};

}  // namespace gossamer
