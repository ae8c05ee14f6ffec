// The readable kernel, one for every format: decode a block of 64 inputs into a tile, multiply it out. Compiled once a
// format, GOSSAMER_FORMAT.
#include <algorithm>

#include "common/half.h"
#include "formats/packed_weight.h"
#include "kernels/cpu/define-inl.h"

namespace gossamer::scalar {

inline float weight_scale(const WeightView& w, int panel, int r, int c) {
  if (w.groups == 0) return 1.0F;
  const int g = w.group == 0 ? 0 : c / w.group;
  return f16_to_f32(w.scales[(static_cast<std::int64_t>(panel) * w.groups + g) * kPanelRows + r]);
}

// sum over one tile of row r, for float activations; `first` is the tile's first input.
template <ValueType kWeight, class Activation>
float tile_sum(const WeightView& w, const Tile& tile, int panel, int r, int first, const Activation& activation) {
  float total = 0;
  const int span = w.group == 32 ? 32 : kBlockCols;  // no tile has two scale groups unless they are of 32
  for (int c0 = 0; c0 < kBlockCols; c0 += span) {
    float sum = 0;
    for (int c = c0; c < c0 + span; ++c) {
      if (!is_zero(kWeight, tile.raw[r][c])) sum += raw_to_f32(kWeight, tile.raw[r][c]) * activation(first + c);
    }
    total += sum * weight_scale(w, panel, r, first + c0);
  }
  return total;
}

// The same for 8-bit activations: exact integer sums a unit, then one multiplication each.
template <ValueType kWeight>
float tile_sum_a8(const LinearArgs& a, const Tile& tile, int panel, int r, int token, int first) {
  float total = 0;
  const std::int8_t* codes = a.x.codes + token * a.x.stride + first;
  for (int c0 = 0; c0 < kBlockCols; c0 += a.x.unit) {
    std::int32_t sum = 0;
    for (int c = c0; c < c0 + a.x.unit; ++c)
      sum += static_cast<std::int32_t>(raw_to_f32(kWeight, tile.raw[r][c])) * codes[c];
    const float scale = a.x.unit_scales[token * a.x.unit_stride + (first + c0) / a.x.unit];
    total += static_cast<float>(sum) * (scale * weight_scale(a.weight, panel, r, first + c0));
  }
  return total;
}

template <Format kFormat, ValueType kWeight, ActivationType kActivation>
void run(const LinearArgs& a) {
  const WeightView& w = a.weight;
  const FormatOps& ops = format_ops(kFormat);
  Tile tile;
  for (int panel = a.begin * panels_a_stream(kWeight); panel < std::min(w.panels, a.end * panels_a_stream(kWeight));
       ++panel) {
    const int rows = std::min(kPanelRows, w.rows - panel * kPanelRows);
    for (int t0 = 0; t0 < a.x.tokens; t0 += kMaxTokens) {
      const int tokens = std::min(kMaxTokens, a.x.tokens - t0);
      float sums[kMaxTokens][kPanelRows] = {};
      Cursor cursor;
      cursor.panel = panel;
      for (int b = 0; b < w.blocks; ++b) {
        ops.next_block(w, cursor, tile);
        for (int t = 0; t < tokens; ++t) {
          const std::int64_t start = (t0 + t) * a.x.stride;
          for (int r = 0; r < rows; ++r) {
            const int first = b * kBlockCols;
            if constexpr (kActivation == ActivationType::kA8)
              sums[t][r] += tile_sum_a8<kWeight>(a, tile, panel, r, t0 + t, first);
            else if constexpr (kActivation == ActivationType::kBf16)
              sums[t][r] +=
                  tile_sum<kWeight>(w, tile, panel, r, first, [&](int c) { return bf16_to_f32(a.x.bf16[start + c]); });
            else
              sums[t][r] += tile_sum<kWeight>(w, tile, panel, r, first, [&](int c) { return a.x.f32[start + c]; });
          }
        }
      }
      for (int t = 0; t < tokens; ++t)
        for (int r = 0; r < rows; ++r) a.y[(t0 + t) * a.y_stride + panel * kPanelRows + r] = sums[t][r];
    }
  }
}

GOSSAMER_KERNELS_scalar(GOSSAMER_DEFINE_KERNEL, GOSSAMER_FORMAT)

}  // namespace gossamer::scalar
