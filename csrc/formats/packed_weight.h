// A packed weight: its view and the memory behind it, and the table of formats.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "common/buffer.h"
#include "formats/stored_matrix.h"
#include "formats/weight.h"

namespace gossamer {

// One named stream of a packed weight: `bytes` of readable memory, `element` bytes an element.
struct Stream {
  const void* data = nullptr;
  std::size_t bytes = 0;
  int element = 1;
};

using Streams = std::map<std::string, Stream>;

// A block of 64 inputs x 16 rows, decoded: raw[r][c]; positions that are not stored are zero.
struct Tile {
  std::uint32_t raw[kPanelRows][kBlockCols];
};

// Where the decoder of a panel stands between blocks. The meaning of the fields is the format's.
struct Cursor {
  int panel = 0;
  int block = 0;
  std::uint64_t value = 0;  // values of this panel behind us
  std::uint64_t slot = 0;
  std::uint64_t step = 0;
};

class PackedWeight;

// What a format brings, beside its kernels. One instance a format, in its own file.
struct FormatOps {
  // Fills the streams of `out` (a view with geometry set) from the stored values.
  void (*pack)(const StoredMatrix& matrix, PackedWeight& out);
  // Checks every index and size of the streams; throws InvalidArgument naming the stream. Sets the view's pointers.
  void (*attach)(PackedWeight& weight);
  // Decodes the block at the cursor into `tile` and moves on.
  void (*next_block)(const WeightView& view, Cursor& cursor, Tile& tile);
};

extern const FormatOps kDenseOps;
extern const FormatOps kBitmapOps;
extern const FormatOps kCsrOps;
extern const FormatOps kNmOps;

const FormatOps& format_ops(Format format);

class PackedWeight {
 public:
  // Geometry only; streams follow. n, m matter for kNm alone.
  PackedWeight(Format format, ValueType type, int rows, int cols, int group, int n, int m);

  const WeightView& view() const { return view_; }
  WeightView& view() { return view_; }
  const Streams& streams() const { return streams_; }
  int value_streams() const;
  std::size_t bytes() const;

  // Bytes that a step reads for value stream s: what work is balanced by.
  std::size_t stream_cost(int stream) const;

  // Owned memory for a stream; zeroed, with spare bytes behind.
  template <class T>
  T* allocate(const std::string& name, std::size_t count) {
    owned_.emplace_back(count * sizeof(T) + kSpareBytes);
    set_stream(name, {owned_.back().data(), round_up(count * sizeof(T) + spare(name), kCacheLine), sizeof(T)});
    return reinterpret_cast<T*>(owned_.back().data());
  }
  void set_stream(const std::string& name, Stream stream) { streams_[name] = stream; }

  // The stream, or InvalidArgument when it is missing, of another element size, or shorter than `count` elements +
  // spare.
  template <class T>
  const T* stream(const std::string& name, std::uint64_t count) {
    return static_cast<const T*>(checked(name, count, sizeof(T)));
  }
  // Validates every stream and sets the view's pointers; throws InvalidArgument naming the stream.
  void finish();

 private:
  static std::size_t spare(const std::string& name) { return name == "values" || name == "columns" ? kSpareBytes : 0; }
  const void* checked(const std::string& name, std::uint64_t count, std::size_t element);

  WeightView view_;
  Streams streams_;
  std::vector<Buffer<std::uint8_t>> owned_;
  std::set<std::string> known_;  // streams that the format asked for
};

// Packs stored values. For kNm every group of m inputs must hold at most n non-zeros.
std::unique_ptr<PackedWeight> pack(const StoredMatrix& matrix, Format format, int n, int m);

// The stored values, exactly.
StoredMatrix unpack(const WeightView& view);

// Stored values that are not zero.
std::int64_t count_nonzeros(const WeightView& view);

// One row of stored numbers (scales applied), for embeddings: out[cols].
void unpack_row(const WeightView& view, int row, float* out);

// Helpers that several formats share.

// Values of one panel in stream order, still raw.
using PanelValues = std::vector<std::uint32_t>;

// Appends one value stream for the panels that share it; for int4 those are two.
void append_values(ValueType type, const PanelValues* panels, int count, std::vector<std::uint8_t>& out);

// For formats of fixed strides, whose padding columns are stored: float values there must be zero, or a NaN would
// spread. Throws InvalidArgument. Padding rows never reach an output.
void require_clear_padding(const WeightView& view);

// Value i of panel p of the view.
std::uint32_t read_value(const WeightView& view, int panel, std::uint64_t index);

// Byte offset of the value stream that serves a panel.
inline std::uint64_t stream_offset(const WeightView& view, int panel) {
  const int stream = view.type == ValueType::kInt4 ? panel / 2 : panel;
  return view.offsets != nullptr ? view.offsets[stream]
                                 : static_cast<std::uint64_t>(stream) * static_cast<std::uint64_t>(view.stride);
}

}  // namespace gossamer
