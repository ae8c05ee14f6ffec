#include "formats/packed_weight.h"

#include <algorithm>
#include <cstring>

#include "common/error.h"
#include "common/half.h"

namespace gossamer {
namespace {

const FormatOps* const kOps[kFormatCount] = {&kDenseOps, &kBitmapOps, &kCsrOps, &kNmOps};

}  // namespace

const FormatOps& format_ops(Format format) { return *kOps[static_cast<int>(format)]; }

PackedWeight::PackedWeight(Format format, ValueType type, int rows, int cols, int group, int n, int m) : view_{} {
  check_geometry(type, rows, cols, group);
  view_.format = format;
  view_.type = type;
  view_.rows = rows;
  view_.cols = cols;
  view_.panels = (rows + kPanelRows - 1) / kPanelRows;
  view_.blocks = (cols + kBlockCols - 1) / kBlockCols;
  view_.group = is_integer(type) ? group : 0;
  view_.groups = group_count(type, cols, group);
  if (format == Format::kNm) {
    require(m == 4 || m == 8 || m == 16 || m == 32 || m == 64, "M of an N:M pattern must be 4, 8, 16, 32 or 64, got ",
            m);
    require(n >= 1 && n <= m, "N of an N:M pattern must be between 1 and M = ", m, ", got ", n);
    view_.n = n;
    view_.m = m;
  }
  if (format == Format::kCsr) {
    view_.csr_block = view_.group == 32 ? 32 : kBlockCols;
    view_.csr_blocks = view_.blocks * (kBlockCols / view_.csr_block);
  }
}

int PackedWeight::value_streams() const {
  const int share = panels_a_stream(view_.type);
  return (view_.panels + share - 1) / share;
}

std::size_t PackedWeight::bytes() const {
  std::size_t total = 0;
  for (const auto& [name, stream] : streams_) total += stream.bytes;
  return total;
}

std::size_t PackedWeight::stream_cost(int stream) const {
  const WeightView& w = view_;
  const int share = panels_a_stream(w.type);
  const int first = stream * share;
  const int last = std::min(first + share, w.panels);
  std::size_t cost =
      w.offsets != nullptr ? w.offsets[stream + 1] - w.offsets[stream] : static_cast<std::size_t>(w.stride);
  if (w.masks != nullptr)
    cost += static_cast<std::size_t>(last - first) * static_cast<std::size_t>(w.blocks) * kBlockWords * 8;
  if (w.slots != nullptr) cost += 4 * (w.slots[last] - w.slots[first]) + 2 * (w.steps[last] - w.steps[first]);
  return cost + static_cast<std::size_t>(last - first) * static_cast<std::size_t>(w.groups) * kPanelRows * 2;
}

const void* PackedWeight::checked(const std::string& name, std::uint64_t count, std::size_t element) {
  known_.insert(name);
  const auto found = streams_.find(name);
  require(found != streams_.end(), "stream '", name, "' is missing");
  const Stream& stream = found->second;
  require(static_cast<std::size_t>(stream.element) == element, "stream '", name, "' must have elements of ", element,
          " bytes, got ", stream.element);
  require(count <= (std::uint64_t{1} << 48), "stream '", name, "' would need ", count, " elements");
  const std::uint64_t expected = round_up(count * element + spare(name), kCacheLine);
  require(stream.bytes == expected, "stream '", name, "' must have ", expected, " bytes, got ", stream.bytes);
  require(reinterpret_cast<std::uintptr_t>(stream.data) % element == 0, "stream '", name, "' is not aligned to ",
          element, " bytes");
  return stream.data;
}

void PackedWeight::finish() {
  if (view_.groups > 0) {
    const std::uint64_t count =
        static_cast<std::uint64_t>(view_.panels) * static_cast<std::uint64_t>(view_.groups) * kPanelRows;
    view_.scales = stream<std::uint16_t>("scales", count);
    for (std::uint64_t i = 0; i < count; ++i)
      require((view_.scales[i] & 0x7c00U) != 0x7c00U, "stream 'scales' holds a value that is not finite, at element ",
              i);
  }
  format_ops(view_.format).attach(*this);
  for (const auto& [name, unused] : streams_)
    require(known_.count(name) != 0, "stream '", name, "' is unknown to format ", format_name(view_.format));
}

std::unique_ptr<PackedWeight> pack(const StoredMatrix& matrix, Format format, int n, int m) {
  auto out = std::make_unique<PackedWeight>(format, matrix.type, matrix.rows, matrix.cols, matrix.group, n, m);
  const WeightView& view = out->view();
  if (view.groups > 0) {
    auto* scales = out->allocate<std::uint16_t>(
        "scales", static_cast<std::size_t>(view.panels) * static_cast<std::size_t>(view.groups) * kPanelRows);
    for (int r = 0; r < view.rows; ++r) {
      for (int g = 0; g < view.groups; ++g) {
        scales[(static_cast<std::size_t>(r / kPanelRows) * static_cast<std::size_t>(view.groups) +
                static_cast<std::size_t>(g)) *
                   kPanelRows +
               static_cast<std::size_t>(r % kPanelRows)] =
            matrix.scales[static_cast<std::size_t>(r) * static_cast<std::size_t>(matrix.groups) +
                          static_cast<std::size_t>(g)];
      }
    }
  }
  format_ops(format).pack(matrix, *out);
  out->finish();
  return out;
}

StoredMatrix unpack(const WeightView& view) {
  StoredMatrix out(view.type, view.rows, view.cols, view.group);
  const FormatOps& ops = format_ops(view.format);
  Tile tile;
  for (int p = 0; p < view.panels; ++p) {
    Cursor cursor;
    cursor.panel = p;
    const int rows = std::min(kPanelRows, view.rows - p * kPanelRows);
    for (int b = 0; b < view.blocks; ++b) {
      ops.next_block(view, cursor, tile);
      const int cols = std::min(kBlockCols, view.cols - b * kBlockCols);
      for (int r = 0; r < rows; ++r)
        for (int c = 0; c < cols; ++c) out.at(p * kPanelRows + r, b * kBlockCols + c) = tile.raw[r][c];
    }
    for (int r = 0; r < rows; ++r)
      for (int g = 0; g < view.groups; ++g)
        out.scales[static_cast<std::size_t>(p * kPanelRows + r) * static_cast<std::size_t>(view.groups) +
                   static_cast<std::size_t>(g)] =
            view.scales[(static_cast<std::size_t>(p) * static_cast<std::size_t>(view.groups) +
                         static_cast<std::size_t>(g)) *
                            kPanelRows +
                        static_cast<std::size_t>(r)];
  }
  return out;
}

std::int64_t count_nonzeros(const WeightView& view) {
  const FormatOps& ops = format_ops(view.format);
  std::int64_t count = 0;
  Tile tile;
  for (int p = 0; p < view.panels; ++p) {
    Cursor cursor;
    cursor.panel = p;
    for (int b = 0; b < view.blocks; ++b) {
      ops.next_block(view, cursor, tile);
      for (const auto& row : tile.raw)
        for (const std::uint32_t raw : row) count += is_zero(view.type, raw) ? 0 : 1;
    }
  }
  return count;
}

void unpack_row(const WeightView& view, int row, float* out) {
  const int panel = row / kPanelRows;
  const int r = row % kPanelRows;
  const auto scale = [&](int c) {
    if (view.groups == 0) return 1.0F;
    const int g = view.group == 0 ? 0 : c / view.group;
    return f16_to_f32(view.scales[(static_cast<std::size_t>(panel) * static_cast<std::size_t>(view.groups) +
                                   static_cast<std::size_t>(g)) *
                                      kPanelRows +
                                  static_cast<std::size_t>(r)]);
  };
  if (view.format == Format::kDense) {  // fixed places: read this row alone
    for (int c = 0; c < view.cols; ++c) {
      const std::uint64_t index = static_cast<std::uint64_t>(c / kWordCols) * kWordBits +
                                  static_cast<std::uint64_t>(r * kWordCols + c % kWordCols);
      out[c] = raw_to_f32(view.type, read_value(view, panel, index)) * scale(c);
    }
    return;
  }
  const FormatOps& ops = format_ops(view.format);
  Cursor cursor;
  cursor.panel = panel;
  Tile tile;
  for (int b = 0; b < view.blocks; ++b) {
    ops.next_block(view, cursor, tile);
    for (int c = b * kBlockCols; c < std::min(view.cols, (b + 1) * kBlockCols); ++c)
      out[c] = raw_to_f32(view.type, tile.raw[r][c % kBlockCols]) * scale(c);
  }
}

void require_clear_padding(const WeightView& view) {
  if (is_integer(view.type) || view.cols % kBlockCols == 0) return;
  const FormatOps& ops = format_ops(view.format);
  const int whole = view.blocks - 1;
  Tile tile;
  for (int p = 0; p < view.panels; ++p) {
    Cursor cursor;
    cursor.panel = p;
    cursor.block = whole;
    cursor.value = static_cast<std::uint64_t>(whole) *
                   static_cast<std::uint64_t>(view.stride / (view.blocks * value_bytes(view.type)));
    ops.next_block(view, cursor, tile);
    for (const auto& row : tile.raw)
      for (int c = view.cols % kBlockCols; c < kBlockCols; ++c)
        require(is_zero(view.type, row[c]), "stream 'values' is not zero in the padding of panel ", p);
  }
}

void append_values(ValueType type, const PanelValues* panels, int count, std::vector<std::uint8_t>& out) {
  if (type == ValueType::kInt4) {
    const std::size_t high_count = count > 1 ? panels[1].size() : 0;
    const std::size_t length = std::max(panels[0].size(), high_count);
    for (std::size_t i = 0; i < length; ++i) {
      const std::uint32_t low = i < panels[0].size() ? panels[0][i] & 0xfU : 0;
      const std::uint32_t high = i < high_count ? panels[1][i] & 0xfU : 0;
      out.push_back(static_cast<std::uint8_t>(low | high << 4));
    }
    return;
  }
  const int width = value_bytes(type);
  for (const std::uint32_t raw : panels[0])
    for (int b = 0; b < width; ++b) out.push_back(static_cast<std::uint8_t>(raw >> (8 * b)));
}

std::uint32_t read_value(const WeightView& view, int panel, std::uint64_t index) {
  const std::uint8_t* base = view.values + stream_offset(view, panel);
  switch (view.type) {
    case ValueType::kF32: {
      std::uint32_t raw = 0;
      std::memcpy(&raw, base + 4 * index, 4);
      return raw;
    }
    case ValueType::kBf16:
    case ValueType::kF16: {
      std::uint16_t raw = 0;
      std::memcpy(&raw, base + 2 * index, 2);
      return raw;
    }
    case ValueType::kInt8:
      return base[index];
    default:
      return panel % 2 == 0 ? base[index] & 0xfU : static_cast<std::uint32_t>(base[index]) >> 4;
  }
}

}  // namespace gossamer
