// csr: the non-zeros of each row with their columns, for weights that are nearly all zeros.
//
// Columns are absolute inside a block of 64 inputs (32 with scale groups of 32), one byte each. The non-zeros of one
// row in one block are cut into slots of 4, the last one filled up with value 0 at column 0 of the block. The slots of
// a panel's block are dealt out in steps: step i has slot i of every row that has one, rows rising.
//
//   counts   [panels][csr_blocks] u8: steps of the block, the largest number of slots among the panel's 16 rows
//   lanes    [steps] u16: bit r is set where row r has a slot in this step; a block's first step has the most rows, and
//            each later one has some of those of the step before
//   columns  [slots][4] u8: the columns of each slot, counted from the block's first input
//   values   value streams (one a panel; int4 one a pair of panels): 4 values a slot, in the order of the slots
//   offsets  [streams + 1] u64: first byte of each value stream, then the end of the last
//   slots    [panels + 1] u64: first slot of each panel, then the number of slots
//   steps    [panels + 1] u64: first step of each panel, then the number of steps
//
// Steps and slots run on through all panels and blocks: panels rising, in a panel blocks rising, in a block steps
// rising, in a step rows rising.
#include <algorithm>
#include <bit>

#include "common/error.h"
#include "formats/packed_weight.h"

namespace gossamer {
namespace {

void pack_csr(const StoredMatrix& matrix, PackedWeight& out) {
  const WeightView& view = out.view();
  const int share = panels_a_stream(view.type);
  std::vector<std::uint8_t> counts;
  std::vector<std::uint8_t> columns;
  std::vector<std::uint8_t> bytes;
  std::vector<std::uint16_t> lanes;
  std::vector<std::uint64_t> slots{0};
  std::vector<std::uint64_t> steps{0};
  std::vector<std::uint64_t> offsets{0};
  PanelValues values[2];
  std::vector<int> found[kPanelRows];
  for (int p = 0; p < view.panels; ++p) {
    PanelValues& mine = values[p % share];
    mine.clear();
    for (int b = 0; b < view.csr_blocks; ++b) {
      const int first = b * view.csr_block;
      std::size_t most = 0;
      for (int r = 0; r < kPanelRows; ++r) {
        found[r].clear();
        const int row = p * kPanelRows + r;
        for (int c = first; row < view.rows && c < std::min(view.cols, first + view.csr_block); ++c)
          if (!is_zero(matrix.type, matrix.at(row, c))) found[r].push_back(c);
        most = std::max(most, (found[r].size() + kCsrSlot - 1) / kCsrSlot);
      }
      counts.push_back(static_cast<std::uint8_t>(most));
      for (std::size_t step = 0; step < most; ++step) {
        unsigned rows = 0;
        for (int r = 0; r < kPanelRows; ++r) {
          if (found[r].size() <= step * kCsrSlot) continue;
          rows |= 1U << r;
          for (std::size_t i = step * kCsrSlot; i < (step + 1) * kCsrSlot; ++i) {
            const bool real = i < found[r].size();
            columns.push_back(real ? static_cast<std::uint8_t>(found[r][i] - first) : std::uint8_t{0});
            mine.push_back(real ? matrix.at(p * kPanelRows + r, found[r][i]) : 0);
          }
        }
        lanes.push_back(static_cast<std::uint16_t>(rows));
      }
    }
    slots.push_back(columns.size() / kCsrSlot);
    steps.push_back(lanes.size());
    if (p % share == share - 1 || p == view.panels - 1) {
      append_values(view.type, values, p % share + 1, bytes);
      offsets.push_back(bytes.size());
    }
  }
  std::copy(counts.begin(), counts.end(), out.allocate<std::uint8_t>("counts", counts.size()));
  std::copy(columns.begin(), columns.end(), out.allocate<std::uint8_t>("columns", columns.size()));
  std::copy(bytes.begin(), bytes.end(), out.allocate<std::uint8_t>("values", bytes.size()));
  std::copy(lanes.begin(), lanes.end(), out.allocate<std::uint16_t>("lanes", lanes.size()));
  std::copy(slots.begin(), slots.end(), out.allocate<std::uint64_t>("slots", slots.size()));
  std::copy(steps.begin(), steps.end(), out.allocate<std::uint64_t>("steps", steps.size()));
  std::copy(offsets.begin(), offsets.end(), out.allocate<std::uint64_t>("offsets", offsets.size()));
}

void attach_csr(PackedWeight& weight) {
  WeightView& view = weight.view();
  const auto panels = static_cast<std::uint64_t>(view.panels);
  const auto blocks = static_cast<std::uint64_t>(view.csr_blocks);
  view.counts = weight.stream<std::uint8_t>("counts", panels * blocks);
  view.steps = weight.stream<std::uint64_t>("steps", panels + 1);
  view.slots = weight.stream<std::uint64_t>("slots", panels + 1);
  const int streams = weight.value_streams();
  view.offsets = weight.stream<std::uint64_t>("offsets", static_cast<std::uint64_t>(streams) + 1);
  require(view.steps[0] == 0 && view.slots[0] == 0 && view.offsets[0] == 0,
          "streams 'steps', 'slots' and 'offsets' must begin with 0");

  std::uint64_t steps = 0;
  for (std::uint64_t p = 0; p < panels; ++p) {
    for (std::uint64_t b = 0; b < blocks; ++b) steps += view.counts[p * blocks + b];
    require(view.steps[p + 1] == steps, "stream 'steps' disagrees with 'counts' at element ", p + 1, ": ",
            view.steps[p + 1], " instead of ", steps);
  }
  view.lanes = weight.stream<std::uint16_t>("lanes", steps);

  std::uint64_t slots = 0;
  std::uint64_t step = 0;
  for (std::uint64_t p = 0; p < panels; ++p) {
    for (std::uint64_t b = 0; b < blocks; ++b) {
      unsigned last = 0xffffU;
      if (p == panels - 1 && view.rows % kPanelRows != 0) last = (1U << (view.rows % kPanelRows)) - 1;
      for (int i = 0; i < view.counts[p * blocks + b]; ++i, ++step) {
        const unsigned rows = view.lanes[step];
        require(rows != 0 && (rows & ~last) == 0, "stream 'lanes' is not a shrinking set of rows at element ", step);
        require((i + 1) * kCsrSlot <= view.csr_block + kCsrSlot - 1,
                "stream 'counts' has more steps than a block has inputs, panel ", p);
        slots += static_cast<std::uint64_t>(std::popcount(rows));
        last = rows;
      }
    }
    require(view.slots[p + 1] == slots, "stream 'slots' disagrees with 'lanes' at element ", p + 1, ": ",
            view.slots[p + 1], " instead of ", slots);
  }
  view.columns = weight.stream<std::uint8_t>("columns", slots * kCsrSlot);

  // Columns stay inside their block, and inside the matrix.
  std::uint64_t slot = 0;
  step = 0;
  for (std::uint64_t p = 0; p < panels; ++p) {
    for (std::uint64_t b = 0; b < blocks; ++b) {
      const int limit = std::min<int>(view.csr_block, view.cols - static_cast<int>(b) * view.csr_block);
      for (int i = 0; i < view.counts[p * blocks + b]; ++i, ++step) {
        const auto bytes = static_cast<std::uint64_t>(std::popcount(view.lanes[step]) * kCsrSlot);
        for (std::uint64_t j = slot * kCsrSlot; j < slot * kCsrSlot + bytes; ++j)
          require(view.columns[j] < limit, "stream 'columns' points beyond its block at element ", j, ": ",
                  static_cast<int>(view.columns[j]));
        slot += bytes / kCsrSlot;
      }
    }
  }

  const int share = panels_a_stream(view.type);
  for (int s = 0; s < streams; ++s) {
    std::uint64_t longest = 0;
    for (int p = s * share; p < std::min(view.panels, (s + 1) * share); ++p)
      longest = std::max(longest, view.slots[p + 1] - view.slots[p]);
    const std::uint64_t end = view.offsets[s] + longest * kCsrSlot * static_cast<std::uint64_t>(value_bytes(view.type));
    require(view.offsets[s + 1] == end, "stream 'offsets' disagrees with 'slots' at element ", s + 1, ": ",
            view.offsets[s + 1], " instead of ", end);
  }
  view.values = weight.stream<std::uint8_t>("values", view.offsets[streams]);
}

void next_csr_block(const WeightView& view, Cursor& cursor, Tile& tile) {
  tile = {};
  for (int part = 0; part < kBlockCols / view.csr_block; ++part) {
    const int b = cursor.block * (kBlockCols / view.csr_block) + part;
    const int steps = view.counts[static_cast<std::size_t>(cursor.panel) * static_cast<std::size_t>(view.csr_blocks) +
                                  static_cast<std::size_t>(b)];
    for (int i = 0; i < steps; ++i) {
      for (unsigned rows = view.lanes[view.steps[cursor.panel] + cursor.step++]; rows != 0; rows &= rows - 1) {
        const int r = std::countr_zero(rows);
        const std::uint8_t* columns = view.columns + (view.slots[cursor.panel] + cursor.slot++) * kCsrSlot;
        for (int j = 0; j < kCsrSlot; ++j) {
          const std::uint32_t raw = read_value(view, cursor.panel, cursor.value++);
          if (!is_zero(view.type, raw)) tile.raw[r][part * view.csr_block + columns[j]] = raw;
        }
      }
    }
  }
  ++cursor.block;
}

}  // namespace

const FormatOps kCsrOps = {pack_csr, attach_csr, next_csr_block};

}  // namespace gossamer
