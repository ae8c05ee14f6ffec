#include "formats/stored_matrix.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "common/cpu_info.h"
#include "common/error.h"
#include "common/half.h"

namespace gossamer {
namespace {

constexpr const char* kFormatNames[kFormatCount] = {"dense", "bitmap", "csr", "nm"};
constexpr const char* kTypeNames[kValueTypeCount] = {"f32", "bf16", "f16", "int8", "int4"};

template <int kCount>
int index_of(const char* const (&names)[kCount], const char* name, const char* what) {
  for (int i = 0; i < kCount; ++i) {
    if (std::strcmp(names[i], name) == 0) return i;
  }
  std::string known;
  for (const char* candidate : names) known += (known.empty() ? "" : ", ") + std::string(candidate);
  throw InvalidArgument(concat(what, " must be one of ", known, ", got '", name, "'"));
}

constexpr float kSmallest = 0x1p-24F;  // the smallest f16 scale; finer groups round to it

struct Rounding {
  float loss;
  std::uint16_t scale;
};

// Rounds to the nearest code, ties to even; adding and subtracting 1.5 * 2^23 does that for small magnitudes.
[[gnu::always_inline]] inline float round_code(float value, float inverse, float low, float high) {
  constexpr float kMagic = 12582912.0F;
  const float scaled = value * inverse;
  const float rounded = (scaled + kMagic) - kMagic;
  return rounded < low ? low : rounded > high ? high : rounded;
}

// NaN counts as larger than infinity.
float largest_magnitude(const float* values, int count) {
  std::int32_t largest = 0;
  for (int i = 0; i < count; ++i) largest = std::max(largest, std::bit_cast<std::int32_t>(values[i]) & 0x7fffffff);
  return std::bit_cast<float>(largest);
}

[[gnu::always_inline]] inline Rounding try_scale(const float* values, int count, float scale) {
  constexpr int kLanes = 8;  // independent sums, so that the loop vectorizes
  const std::uint16_t half = f32_to_f16(scale);
  const float stored = f16_to_f32(half);
  if (stored == 0 || !std::isfinite(stored)) return {HUGE_VALF, half};
  const float inverse = 1.0F / stored;
  float losses[kLanes] = {};
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) {
      const float error = values[i + j] - stored * round_code(values[i + j], inverse, -8.0F, 7.0F);
      losses[j] += error * error;
    }
  }
  for (; i < count; ++i) {
    const float error = values[i] - stored * round_code(values[i], inverse, -8.0F, 7.0F);
    losses[0] += error * error;
  }
  float loss = 0;
  for (const float part : losses) loss += part;
  return {loss, half};
}

// With 16 codes the choice of a scale matters: candidates put the largest magnitude between 6 and 9 steps out, on the
// side that has the extra code -8 or on the other. Fewer whole steps find again, exactly, the scale of values that were
// rounded before.
[[gnu::always_inline]] inline std::uint16_t search_scale(const float* values, int count, float magnitude) {
  Rounding best{HUGE_VALF, f32_to_f16(std::max(magnitude / 7.0F, kSmallest))};
  const auto consider = [&](float reach) __attribute__((always_inline)) {
    for (const float sign : {1.0F, -1.0F}) {
      // A negative scale swaps the sides, so that -8 can serve a positive extreme.
      const Rounding tried = try_scale(values, count, sign * std::max(magnitude / reach, kSmallest));
      if (tried.loss < best.loss) best = tried;
    }
  };
  for (int steps = 1; steps <= 5; ++steps) consider(static_cast<float>(steps));
  for (int fifths = 28; fifths <= 44; ++fifths) consider(static_cast<float>(fifths) / 5.0F);
  return best.scale;
}

#if GOSSAMER_X86
// The same operations in the same order.
[[gnu::target("avx2")]] std::uint16_t search_scale_avx2(const float* values, int count, float magnitude) {
  return search_scale(values, count, magnitude);
}
#endif

// int8 has codes to spare, so the largest magnitude maps to 127.
std::uint16_t choose_scale(const float* values, int count, float magnitude, ValueType type) {
  if (magnitude == 0) return 0;
  if (type == ValueType::kInt8) return f32_to_f16(std::max(magnitude / 127.0F, kSmallest));
#if GOSSAMER_X86
  static const bool kWide = builds_on(active_isa(), Isa::kAvx2);
  if (kWide) return search_scale_avx2(values, count, magnitude);
#endif
  return search_scale(values, count, magnitude);
}

void choose_row(const float* row, int number, int cols, ValueType type, int span, std::uint16_t* scales) {
  for (int first = 0; first < cols; first += span) {
    const int count = std::min(span, cols - first);
    const float magnitude = largest_magnitude(row + first, count);
    if (!std::isfinite(magnitude)) {
      const int c = static_cast<int>(
          std::find_if_not(row + first, row + first + count, [](float value) { return std::isfinite(value); }) - row);
      throw InvalidArgument(
          concat("value ", row[c], " at row ", number, ", column ", c, " cannot be stored as ", type_name(type)));
    }
    const std::uint16_t half = choose_scale(row + first, count, magnitude, type);
    require(std::isfinite(f16_to_f32(half)), "values at row ", number, ", columns from ", first,
            " are too large for an f16 scale");
    *scales++ = half;
  }
}

// Chooses the scales of a row, and gives `store` the code of every column whose scale is not zero.
template <class Store>
void round_row(const float* row, int number, int cols, ValueType type, int span, std::uint16_t* scales,
               const Store& store) {
  const float low = type == ValueType::kInt8 ? -127.0F : -8.0F;
  const float high = type == ValueType::kInt8 ? 127.0F : 7.0F;
  choose_row(row, number, cols, type, span, scales);
  for (int first = 0; first < cols; first += span) {
    const float scale = f16_to_f32(*scales++);
    if (scale == 0) continue;
    const float inverse = 1.0F / scale;
    for (int c = first; c < std::min(first + span, cols); ++c)
      store(c, static_cast<int>(round_code(row[c], inverse, low, high)));
  }
}

}  // namespace

const char* format_name(Format format) { return kFormatNames[static_cast<int>(format)]; }
const char* type_name(ValueType type) { return kTypeNames[static_cast<int>(type)]; }
Format format_from_name(const char* name) { return static_cast<Format>(index_of(kFormatNames, name, "format")); }
ValueType type_from_name(const char* name) { return static_cast<ValueType>(index_of(kTypeNames, name, "value type")); }

int group_count(ValueType type, int cols, int group) {
  if (!is_integer(type)) return 0;
  const int padded = (cols + kBlockCols - 1) / kBlockCols * kBlockCols;
  return group == 0 ? 1 : (padded + group - 1) / group;
}

void check_geometry(ValueType type, int rows, int cols, int group) {
  require(rows > 0 && cols > 0, "a weight needs at least one row and one column, got ", rows, " x ", cols);
  require(rows <= (1 << 28) && cols <= (1 << 24), "a weight of ", rows, " x ", cols, " is too large");
  require(!is_integer(type) || group == 0 || group == 32 || group == 64 || group == 128,
          "group must be 32, 64, 128 or 0 (one scale a row), got ", group);
}

StoredMatrix::StoredMatrix(ValueType type_, int rows_, int cols_, int group_)
    : type((check_geometry(type_, rows_, cols_, group_), type_)),
      rows(rows_),
      cols(cols_),
      group(is_integer(type_) ? group_ : 0),
      groups(group_count(type_, cols_, group_)) {
  raw.assign(static_cast<std::size_t>(rows) * static_cast<std::size_t>(cols), 0);
  scales.assign(static_cast<std::size_t>(rows) * static_cast<std::size_t>(groups), 0);
}

bool is_zero(ValueType type, std::uint32_t raw) {
  switch (type) {
    case ValueType::kF32:
      return (raw << 1) == 0;
    case ValueType::kBf16:
    case ValueType::kF16:
      return (raw & 0x7fffU) == 0;
    default:
      return raw == 0;
  }
}

float raw_to_f32(ValueType type, std::uint32_t raw) {
  switch (type) {
    case ValueType::kF32:
      return std::bit_cast<float>(raw);
    case ValueType::kBf16:
      return bf16_to_f32(static_cast<std::uint16_t>(raw));
    case ValueType::kF16:
      return f16_to_f32(static_cast<std::uint16_t>(raw));
    case ValueType::kInt8:
      return static_cast<float>(static_cast<std::int8_t>(raw));
    default:
      return static_cast<float>(static_cast<int>(raw ^ 8U) - 8);
  }
}

StoredMatrix quantize(const float* values, int rows, int cols, ValueType type, int group) {
  StoredMatrix out(type, rows, cols, group);
  const int span = out.group == 0 ? cols : out.group;
  const std::uint32_t code_mask = type == ValueType::kInt8 ? 0xffU : 0xfU;
  for (int r = 0; r < rows; ++r) {
    const float* row = values + static_cast<std::size_t>(r) * static_cast<std::size_t>(cols);
    if (!is_integer(type)) {
      for (int c = 0; c < cols; ++c) {
        std::uint32_t raw = 0;
        if (type == ValueType::kF32) {
          raw = std::bit_cast<std::uint32_t>(row[c]);
        } else {
          raw = type == ValueType::kBf16 ? f32_to_bf16(row[c]) : f32_to_f16(row[c]);
          require(!std::isfinite(row[c]) || std::isfinite(raw_to_f32(type, raw)), "value ", row[c], " at row ", r,
                  ", column ", c, " does not fit ", type_name(type));
        }
        out.at(r, c) = is_zero(type, raw) ? 0 : raw;
      }
      continue;
    }
    round_row(row, r, cols, type, span,
              out.scales.data() + static_cast<std::size_t>(r) * static_cast<std::size_t>(out.groups),
              [&](int c, int code) { out.at(r, c) = static_cast<std::uint32_t>(code) & code_mask; });
  }
  return out;
}

std::vector<std::uint16_t> choose_scales(const float* values, int rows, int cols, ValueType type, int group) {
  check_geometry(type, rows, cols, group);
  require(is_integer(type), "scales are for int8 and int4, got type ", type_name(type));
  const int span = group == 0 ? cols : group;
  const int groups = (cols + span - 1) / span;
  std::vector<std::uint16_t> scales(static_cast<std::size_t>(rows) * static_cast<std::size_t>(groups));
  for (int r = 0; r < rows; ++r)
    choose_row(values + static_cast<std::size_t>(r) * static_cast<std::size_t>(cols), r, cols, type, span,
               scales.data() + static_cast<std::size_t>(r) * static_cast<std::size_t>(groups));
  return scales;
}

std::vector<std::uint16_t> round_codes(const float* values, int rows, int cols, ValueType type, int group,
                                       std::int8_t* codes) {
  check_geometry(type, rows, cols, group);
  require(is_integer(type), "codes are for int8 and int4, got type ", type_name(type));
  const int span = group == 0 ? cols : group;
  const auto groups = static_cast<std::size_t>((cols + span - 1) / span);
  std::vector<std::uint16_t> scales(static_cast<std::size_t>(rows) * groups);
  for (int r = 0; r < rows; ++r) {
    const auto from = static_cast<std::size_t>(r) * static_cast<std::size_t>(cols);
    std::int8_t* mine = codes + from;
    std::fill_n(mine, cols, std::int8_t{0});
    round_row(values + from, r, cols, type, span, scales.data() + static_cast<std::size_t>(r) * groups,
              [mine](int c, int code) { mine[c] = static_cast<std::int8_t>(code); });
  }
  return scales;
}

void dequantize(const StoredMatrix& matrix, float* values) {
  const int span = matrix.group == 0 ? matrix.cols : matrix.group;
  for (int r = 0; r < matrix.rows; ++r) {
    float* row = values + static_cast<std::size_t>(r) * static_cast<std::size_t>(matrix.cols);
    for (int c = 0; c < matrix.cols; ++c) {
      const float value = raw_to_f32(matrix.type, matrix.at(r, c));
      row[c] =
          matrix.groups == 0
              ? value
              : value * f16_to_f32(matrix.scales[static_cast<std::size_t>(r) * static_cast<std::size_t>(matrix.groups) +
                                                 static_cast<std::size_t>(c / span)]);
    }
  }
}

}  // namespace gossamer
