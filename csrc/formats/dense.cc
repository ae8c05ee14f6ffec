// dense: every position is stored.
//
//   values  [panels (or pairs, int4)][blocks * 16 words][64 positions]
//
// A stream is `stride` = blocks * 1024 * value bytes long. Padding positions hold zeros.
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
  PanelValues panels[2];
  std::vector<std::uint8_t> stream;
  for (int p = 0; p < view.panels; ++p) {
    PanelValues& mine = panels[p % share];
    mine.clear();
    for (int c0 = 0; c0 < view.blocks * kBlockCols; c0 += kWordCols) {
      for (int bit = 0; bit < kWordBits; ++bit) {
        const int r = p * kPanelRows + bit / kWordCols;
        const int c = c0 + bit % kWordCols;
        mine.push_back(r < view.rows && c < view.cols ? matrix.at(r, c) : 0);
      }
    }
    if (p % share != share - 1 && p != view.panels - 1) continue;
    stream.clear();
    append_values(view.type, panels, p % share + 1, stream);
    std::copy(stream.begin(), stream.end(), bytes + static_cast<std::size_t>(p / share) * stream.size());
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
