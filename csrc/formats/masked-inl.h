// What `bitmap` and `nm` share: words of 64 mask bits, and a value for every set bit.
#pragma once

#include <bit>
#include <cstdint>

#include "formats/packed_weight.h"

namespace gossamer {

// The word at (panel, word) with a set bit for every stored position of `stored(r, c)`.
template <class Stored>
std::uint64_t build_word(int panel, int word, const Stored& stored) {
  std::uint64_t mask = 0;
  for (int bit = 0; bit < kWordBits; ++bit) {
    if (stored(panel * kPanelRows + bit / kWordCols, word * kWordCols + bit % kWordCols))
      mask |= std::uint64_t{1} << bit;
  }
  return mask;
}

// Fills "masks" and collects each panel's values, handing full value streams to `emit(panels, count)`.
template <class Stored, class Emit>
void pack_masked(const StoredMatrix& matrix, PackedWeight& out, const Stored& stored, const Emit& emit) {
  const WeightView& view = out.view();
  const int words = view.blocks * kBlockWords;
  auto* masks =
      out.allocate<std::uint64_t>("masks", static_cast<std::size_t>(view.panels) * static_cast<std::size_t>(words));
  const int share = panels_a_stream(view.type);
  PanelValues values[2];
  for (int p = 0; p < view.panels; ++p) {
    PanelValues& mine = values[p % share];
    mine.clear();
    for (int w = 0; w < words; ++w) {
      const std::uint64_t mask = build_word(p, w, stored);
      masks[static_cast<std::size_t>(p) * static_cast<std::size_t>(words) + static_cast<std::size_t>(w)] = mask;
      for (std::uint64_t left = mask; left != 0; left &= left - 1) {
        const int bit = std::countr_zero(left);
        const int r = p * kPanelRows + bit / kWordCols;
        const int c = w * kWordCols + bit % kWordCols;
        mine.push_back(r < view.rows && c < view.cols ? matrix.at(r, c) : 0);
      }
    }
    if (p % share == share - 1 || p == view.panels - 1) emit(values, p % share + 1);
  }
}

inline void next_masked_block(const WeightView& view, Cursor& cursor, Tile& tile) {
  tile = {};
  const std::uint64_t* masks =
      view.masks + (static_cast<std::size_t>(cursor.panel) * static_cast<std::size_t>(view.blocks) +
                    static_cast<std::size_t>(cursor.block)) *
                       kBlockWords;
  for (int w = 0; w < kBlockWords; ++w) {
    for (std::uint64_t left = masks[w]; left != 0; left &= left - 1) {
      const int bit = std::countr_zero(left);
      tile.raw[bit / kWordCols][w * kWordCols + bit % kWordCols] = read_value(view, cursor.panel, cursor.value++);
    }
  }
  ++cursor.block;
}

// Bits that lie in the padding of the last panel and of the last block.
inline std::uint64_t padding_bits(const WeightView& view, int panel, int word) {
  return build_word(panel, word, [&](int r, int c) { return r >= view.rows || c >= view.cols; });
}

}  // namespace gossamer
