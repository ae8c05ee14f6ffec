#include "ops/tensor_linear.h"

#include <algorithm>

#include "common/half.h"
#include "kernels/vectors.h"

namespace gossamer {
namespace {

// Tokens that a pass takes, so that what is converted stays in the cache, and scratch memory small.
constexpr std::int64_t kBlockTokens = 512;

constexpr std::int64_t element_bytes(FloatType type) { return type == FloatType::kF32 ? 4 : 2; }

const void* row_of(const TensorRows& rows, std::int64_t token) {
  return static_cast<const char*>(rows.data) + token * rows.stride * element_bytes(rows.type);
}

}  // namespace

void TensorScratch::run(Parallel& parallel, const Linear& linear, const TensorLinearArgs& args) {
  const auto* bias = static_cast<const float*>(args.bias);
  if (args.bias != nullptr &&
      (args.bias_type != FloatType::kF32 || reinterpret_cast<std::uintptr_t>(args.bias) % sizeof(float) != 0)) {
    bias_.resize(static_cast<std::size_t>(linear.rows()));
    vector_kernels().widen(args.bias, args.bias_type, linear.rows(), linear.rows(), bias_.data());
    bias = bias_.data();
  }
  TensorLinearArgs block = args;
  for (std::int64_t t = 0; t < args.tokens; t += kBlockTokens) {
    block.tokens = std::min(kBlockTokens, args.tokens - t);
    block.x.data = row_of(args.x, t);
    block.y = static_cast<char*>(args.y) + t * linear.rows() * element_bytes(args.x.type);
    run_block(parallel, linear, block, bias);
  }
}

void TensorScratch::run_block(Parallel& parallel, const Linear& linear, const TensorLinearArgs& args,
                              const float* bias) {
  const VectorKernels& vectors = vector_kernels();
  const std::int64_t rows = linear.rows();
  const std::int64_t cols = linear.cols();
  const std::int64_t padded = padded_cols(cols);
  const FloatType type = args.x.type;
  const auto tokens = static_cast<std::size_t>(args.tokens);
  // Conversions to other activations read what is there and pad by themselves; f32 ones are multiplied as they lie.
  const bool in_place = type == FloatType::kF32 && linear.activation() != ActivationType::kF32 &&
                        reinterpret_cast<std::uintptr_t>(args.x.data) % sizeof(float) == 0;
  Rows x{static_cast<const float*>(args.x.data), static_cast<int>(args.tokens), linear.cols(), args.x.stride};
  if (!in_place) {
    x_.resize(tokens * static_cast<std::size_t>(padded) + kSpareBytes);
    parallel.parallel_for(args.tokens, 4, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t t = begin; t < end; ++t)
        vectors.widen(row_of(args.x, t), type, cols, padded, x_.data() + t * padded);
    });
    x.data = x_.data();
    x.stride = padded;
  }
  const bool direct = type == FloatType::kF32 && reinterpret_cast<std::uintptr_t>(args.y) % sizeof(float) == 0;
  if (!direct) y_.resize(tokens * static_cast<std::size_t>(rows));
  float* y = direct ? static_cast<float*>(args.y) : y_.data();
  cache_.reset(x);
  const Activations& inputs = cache_.get(linear.activation(), linear.unit(), parallel);
  parallel.parallel_for(linear.pieces(), 1, [&](std::int64_t begin, std::int64_t end, int) {
    linear.run_pieces(begin, end, inputs, y, rows);
    if (direct && bias == nullptr) return;
    const std::int64_t first = linear.first_row(begin);
    const std::int64_t count = linear.first_row(end) - first;
    for (std::int64_t t = 0; t < args.tokens; ++t) {
      float* row = y + t * rows + first;
      if (bias != nullptr) vectors.add(row, bias + first, count);
      if (!direct)
        vectors.narrow(row, count, type, static_cast<char*>(args.y) + (t * rows + first) * element_bytes(type));
    }
  });
}

void expand_panels(Parallel& parallel, const WeightView& weight, int begin, int end, float* out, std::int64_t stride) {
  const FormatOps& ops = format_ops(weight.format);
  parallel.parallel_for(end - begin, 1, [&](std::int64_t first, std::int64_t last, int) {
    Tile tile;
    float scales[kPanelRows];
    for (auto p = static_cast<int>(begin + first); p < begin + last; ++p) {
      Cursor cursor;
      cursor.panel = p;
      const int rows = std::min(kPanelRows, weight.rows - p * kPanelRows);
      float* to = out + static_cast<std::int64_t>(p - begin) * kPanelRows * stride;
      for (int b = 0; b < weight.blocks; ++b) {
        ops.next_block(weight, cursor, tile);
        const int cols = std::min(kBlockCols, weight.cols - b * kBlockCols);
        const int span = weight.group == 32 ? 32 : kBlockCols;
        for (int c0 = 0; c0 < cols; c0 += span) {
          const int group = weight.group == 0 ? 0 : (b * kBlockCols + c0) / weight.group;
          for (int r = 0; r < rows; ++r) {
            const std::int64_t place = (static_cast<std::int64_t>(p) * weight.groups + group) * kPanelRows + r;
            scales[r] = weight.groups == 0 ? 1.0F : f16_to_f32(weight.scales[place]);
            for (int c = c0; c < std::min(cols, c0 + span); ++c)
              to[r * stride + b * kBlockCols + c] = raw_to_f32(weight.type, tile.raw[r][c]) * scales[r];
          }
        }
      }
    }
  });
}

}  // namespace gossamer
