// bitmap: one bit a position, and the values of the set ones.
//
//   masks    [panels][blocks * 16] 64-bit words; a set bit means a stored non-zero; padding bits are clear
//   values   value streams, one behind the other
//   offsets  [streams + 1] first byte of each value stream
#include <algorithm>
#include <bit>

#include "common/error.h"
#include "formats/masked-inl.h"
#include "formats/packed_weight.h"

namespace gossamer {
namespace {

void pack_bitmap(const StoredMatrix& matrix, PackedWeight& out) {
  const WeightView& view = out.view();
  std::vector<std::uint8_t> bytes;
  std::vector<std::uint64_t> offsets{0};
  pack_masked(
      matrix, out,
      [&](int r, int c) { return r < view.rows && c < view.cols && !is_zero(matrix.type, matrix.at(r, c)); },
      [&](const PanelValues* panels, int count) {
        append_values(view.type, panels, count, bytes);
        offsets.push_back(bytes.size());
      });
  std::copy(offsets.begin(), offsets.end(), out.allocate<std::uint64_t>("offsets", offsets.size()));
  std::copy(bytes.begin(), bytes.end(), out.allocate<std::uint8_t>("values", bytes.size()));
}

void attach_bitmap(PackedWeight& weight) {
  WeightView& view = weight.view();
  const auto words = static_cast<std::uint64_t>(view.blocks) * kBlockWords;
  view.masks = weight.stream<std::uint64_t>("masks", static_cast<std::uint64_t>(view.panels) * words);
  const int streams = weight.value_streams();
  view.offsets = weight.stream<std::uint64_t>("offsets", static_cast<std::uint64_t>(streams) + 1);
  require(view.offsets[0] == 0, "stream 'offsets' must begin with 0, got ", view.offsets[0]);
  const int share = panels_a_stream(view.type);
  for (int s = 0; s < streams; ++s) {
    std::uint64_t longest = 0;
    for (int p = s * share; p < std::min(view.panels, (s + 1) * share); ++p) {
      const std::uint64_t* masks = view.masks + static_cast<std::uint64_t>(p) * words;
      std::uint64_t count = 0;
      for (std::uint64_t w = 0; w < words; ++w) count += static_cast<std::uint64_t>(std::popcount(masks[w]));
      longest = std::max(longest, count);
      const int first_edge = p == view.panels - 1 ? 0 : view.cols / kWordCols;  // words that may hold padding
      for (auto w = static_cast<std::uint64_t>(first_edge); w < words; ++w)
        require((masks[w] & padding_bits(view, p, static_cast<int>(w))) == 0,
                "stream 'masks' has a bit set in the padding, panel ", p, ", word ", w);
    }
    const std::uint64_t length = longest * static_cast<std::uint64_t>(value_bytes(view.type));
    require(view.offsets[s + 1] == view.offsets[s] + length, "stream 'offsets' disagrees with 'masks' at element ",
            s + 1, ": ", view.offsets[s + 1], " instead of ", view.offsets[s] + length);
  }
  view.values = weight.stream<std::uint8_t>("values", view.offsets[streams]);
}

}  // namespace

const FormatOps kBitmapOps = {pack_bitmap, attach_bitmap, next_masked_block};

}  // namespace gossamer
