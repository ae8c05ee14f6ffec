// dense: every position is stored.
//
//   values  [panels (or pairs, int4)][blocks * 16 words][64 positions]
//
// A stream is `stride` = blocks * 1024 * value bytes long. Padding positions hold zeros.
#include <algorithm>
#include <cstring>

#include "common/error.h"
#include "formats/packed_weight.h"

namespace gossamer {
namespace {

std::int64_t stride(const WeightView& view) {
  return static_cast<std::int64_t>(view.blocks) * kPanelRows * kBlockCols * value_bytes(view.type);
}

void pack_dense(const StoredMatrix& matrix, PackedWeight& out) {
  const WeightView& view = out.view();
  auto* bytes = out.allocate<std::uint8_t>(
      "values", static_cast<std::size_t>(stride(view)) * static_cast<std::size_t>(out.value_streams()));
  const int share = panels_a_stream(view.type);
  const int width = value_bytes(view.type);
  for (int r = 0; r < view.rows; ++r) {
    const int panel = r / kPanelRows;
    std::uint8_t* stream = bytes + static_cast<std::size_t>(panel / share) * static_cast<std::size_t>(stride(view));
    const bool high = panel % share != 0;  // of the nibbles of a byte
    for (int word = 0; word * kWordCols < view.cols; ++word) {
      std::uint8_t* at = stream + static_cast<std::size_t>(word * kWordBits + r % kPanelRows * kWordCols) *
                                      static_cast<std::size_t>(width);
      for (int c = word * kWordCols; c < std::min((word + 1) * kWordCols, view.cols); ++c, at += width) {
        const std::uint32_t raw = matrix.at(r, c);
        if (view.type == ValueType::kInt4) {
          *at = static_cast<std::uint8_t>(*at | (high ? raw << 4 : raw));
        } else {
          std::memcpy(at, &raw, static_cast<std::size_t>(width));  // x86 stores the low bytes first
        }
      }
    }
  }
}

void attach_dense(PackedWeight& weight) {
  WeightView& view = weight.view();
  view.stride = stride(view);
  view.values = weight.stream<std::uint8_t>(
      "values", static_cast<std::uint64_t>(view.stride) * static_cast<std::uint64_t>(weight.value_streams()));
  require_clear_padding(view);
}

void next_dense_block(const WeightView& view, Cursor& cursor, Tile& tile) {
  for (int w = 0; w < kBlockWords; ++w)
    for (int bit = 0; bit < kWordBits; ++bit)
      tile.raw[bit / kWordCols][w * kWordCols + bit % kWordCols] = read_value(view, cursor.panel, cursor.value++);
  ++cursor.block;
}

}  // namespace

const FormatOps kDenseOps = {pack_dense, attach_dense, next_dense_block};

}  // namespace gossamer
