// nm: exactly N stored values in every M inputs of every row, so that all strides are fixed.
//
//   masks   [panels][blocks * 16] u64: bit 4 r + k of a word is set where row r stores the word's input k; every row has
//           N bits in every M inputs, padding rows and columns included
//   values  [panels, int4: pairs of panels][blocks][1024 * N / M] elements, in order of word, then bit
//
// The index coding is the bit mask for every (N, M). A group with fewer than N non-zeros stores explicit zeros in its
// first free places; so do the tails.
#include <bit>

#include "common/error.h"
#include "formats/masked-inl.h"
#include "formats/packed_weight.h"

namespace gossamer {
namespace {

std::int64_t stride(const WeightView& view) {
  return static_cast<std::int64_t>(view.blocks) * (kPanelRows * kBlockCols * view.n / view.m) * value_bytes(view.type);
}

void pack_nm(const StoredMatrix& matrix, PackedWeight& out) {
  const WeightView& view = out.view();
  const int padded_rows = view.panels * kPanelRows;
  const int padded_cols = view.blocks * kBlockCols;
  std::vector<bool> stored(static_cast<std::size_t>(padded_rows) * static_cast<std::size_t>(padded_cols));
  const auto place = [&](int r, int c) {
    return static_cast<std::size_t>(r) * static_cast<std::size_t>(padded_cols) + static_cast<std::size_t>(c);
  };
  for (int r = 0; r < padded_rows; ++r) {
    for (int first = 0; first < padded_cols; first += view.m) {
      int count = 0;
      for (int c = first; c < first + view.m; ++c) {
        if (r >= view.rows || c >= view.cols || is_zero(matrix.type, matrix.at(r, c))) continue;
        stored[place(r, c)] = true;
        ++count;
      }
      require(count <= view.n, "row ", r, " has ", count, " non-zeros in the ", view.m, " inputs from ", first,
              ", more than the pattern ", view.n, ":", view.m, " allows");
      for (int c = first; count < view.n; ++c) {
        if (stored[place(r, c)]) continue;
        stored[place(r, c)] = true;
        ++count;
      }
    }
  }
  std::vector<std::uint8_t> bytes;
  pack_masked(
      matrix, out, [&](int r, int c) { return stored[place(r, c)]; },
      [&](const PanelValues* panels, int count) { append_values(view.type, panels, count, bytes); });
  std::copy(bytes.begin(), bytes.end(), out.allocate<std::uint8_t>("values", bytes.size()));
}

void attach_nm(PackedWeight& weight) {
  WeightView& view = weight.view();
  const auto words = static_cast<std::uint64_t>(view.blocks) * kBlockWords;
  view.masks = weight.stream<std::uint64_t>("masks", static_cast<std::uint64_t>(view.panels) * words);
  for (int p = 0; p < view.panels; ++p) {
    const std::uint64_t* masks = view.masks + static_cast<std::uint64_t>(p) * words;
    for (std::uint64_t first = 0; first < words; first += static_cast<std::uint64_t>(view.m / kWordCols)) {
      for (int r = 0; r < kPanelRows; ++r) {
        int count = 0;
        for (int w = 0; w < view.m / kWordCols; ++w)
          count += std::popcount((masks[first + static_cast<std::uint64_t>(w)] >> (kWordCols * r)) & 0xfU);
        require(count == view.n, "stream 'masks' stores ", count, " values instead of ", view.n, " in row ",
                p * kPanelRows + r, ", inputs from ", first * kWordCols);
      }
    }
  }
  view.stride = stride(view);
  view.values = weight.stream<std::uint8_t>(
      "values", static_cast<std::uint64_t>(view.stride) * static_cast<std::uint64_t>(weight.value_streams()));
  require_clear_padding(view);
}

}  // namespace

const FormatOps kNmOps = {pack_nm, attach_nm, next_masked_block};

}  // namespace gossamer
