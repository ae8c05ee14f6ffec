// A matrix of the values that are stored, one element a position: what packing starts from and unpacking returns to.
#pragma once

#include <cstdint>
#include <vector>

#include "common/buffer.h"
#include "formats/weight.h"

namespace gossamer {

const char* format_name(Format format);
const char* type_name(ValueType type);
Format format_from_name(const char* name);   // throws InvalidArgument
ValueType type_from_name(const char* name);  // throws InvalidArgument

inline bool is_integer(ValueType type) { return type == ValueType::kInt8 || type == ValueType::kInt4; }

// Bytes of one value in a stream; a nibble counts as one, since its byte serves two panels.
inline int value_bytes(ValueType type) {
  return type == ValueType::kF32 ? 4 : (type == ValueType::kBf16 || type == ValueType::kF16) ? 2 : 1;
}

inline int panels_a_stream(ValueType type) { return type == ValueType::kInt4 ? 2 : 1; }

// Throws InvalidArgument for a size or a group that no weight can have.
void check_geometry(ValueType type, int rows, int cols, int group);

// Scales a row for `cols` inputs, padded to whole blocks; 0 for float types.
int group_count(ValueType type, int cols, int group);

// Elements are raw bits: f32 as they are, 16-bit floats in the low half, integer codes as their low 8 (4) bits.
struct StoredMatrix {
  ValueType type = ValueType::kF32;
  int rows = 0;
  int cols = 0;
  int group = 0;
  int groups = 0;                     // of the padded columns
  std::vector<std::uint32_t> raw;     // [rows][cols]
  std::vector<std::uint16_t> scales;  // [rows][groups]

  StoredMatrix(ValueType type, int rows, int cols, int group);
  std::uint32_t& at(int r, int c) {
    return raw[static_cast<std::size_t>(r) * static_cast<std::size_t>(cols) + static_cast<std::size_t>(c)];
  }
  std::uint32_t at(int r, int c) const {
    return raw[static_cast<std::size_t>(r) * static_cast<std::size_t>(cols) + static_cast<std::size_t>(c)];
  }
};

// Zero by value: -0.0 counts, NaN does not.
bool is_zero(ValueType type, std::uint32_t raw);

// The number that a raw element stands for, before any scale.
float raw_to_f32(ValueType type, std::uint32_t raw);

// Rounds `values` [rows][cols] to `type`. Integer types get, for every group, the f16 scale among a few candidates
// whose rounding loses least in squares; zeros stay exactly zero. Throws InvalidArgument when an integer type meets NaN
// or infinity, or a float type overflows to infinity.
StoredMatrix quantize(const float* values, int rows, int cols, ValueType type, int group);

// The f16 scales that `quantize` gives an integer type, [rows][ceil(cols / group)]; throws as it does.
std::vector<std::uint16_t> choose_scales(const float* values, int rows, int cols, ValueType type, int group);

// The codes [rows][cols] that `quantize` gives an integer type, and their scales as `choose_scales` returns them.
std::vector<std::uint16_t> round_codes(const float* values, int rows, int cols, ValueType type, int group,
                                       std::int8_t* codes);

// The numbers that are stored, [rows][cols].
void dequantize(const StoredMatrix& matrix, float* values);

}  // namespace gossamer
