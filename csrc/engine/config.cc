#include "engine/config.h"

#include <cmath>

#include "common/error.h"

namespace gossamer {

void DecoderConfig::validate() const {
  constexpr int kMost = 1 << 24;
  const auto positive = [kMost](int value, const char* name) {
    require(value > 0 && value <= kMost, "decoder config: ", name, " must be between 1 and ", kMost, ", got ", value);
  };
  positive(hidden, "hidden");
  positive(layers, "layers");
  positive(heads, "heads");
  positive(kv_heads, "kv_heads");
  positive(head_dim, "head_dim");
  positive(intermediate, "intermediate");
  positive(vocab, "vocab");
  positive(context, "context");
  require(heads % kv_heads == 0, "decoder config: heads (", heads, ") must be a multiple of kv_heads (", kv_heads, ")");
  require(static_cast<double>(heads) * head_dim <= kMost, "decoder config: heads times head_dim is too large");
  require(norm_eps >= 0 && std::isfinite(norm_eps), "decoder config: norm_eps must be finite and not negative, got ",
          norm_eps);
  require(2 * inv_freq.size() <= static_cast<std::size_t>(head_dim), "decoder config: inv_freq has ", inv_freq.size(),
          " frequencies, more than half of head_dim (", head_dim, ")");
  for (const float f : inv_freq) require(std::isfinite(f), "decoder config: inv_freq holds a value that is not finite");
  require(std::isfinite(rope_scale), "decoder config: rope_scale must be finite");
}

}  // namespace gossamer
