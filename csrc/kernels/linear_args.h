// What a linear kernel gets. Plain data: included by files that are compiled for an ISA.
#ifndef GOSSAMER_KERNELS_LINEAR_ARGS_H_
#define GOSSAMER_KERNELS_LINEAR_ARGS_H_

#include <stdint.h>

#include "formats/weight.h"

namespace gossamer {

enum class ActivationType : uint8_t { kF32, kBf16, kA8 };

constexpr int kActivationTypeCount = 3;

// Tokens that a small-batch kernel serves with one expansion of the weights.
constexpr int kMaxTokens = 48;

// Inputs of one call, [tokens][stride], zero behind cols up to whole blocks; 64 readable bytes behind the last token.
struct Activations {
  ActivationType type;
  int32_t tokens;
  int64_t stride;               // elements from token to token, a multiple of 64, at least 64 * blocks
  const float* f32;             // kF32
  const uint16_t* bf16;         // kBf16
  const int8_t* codes;          // kA8: x is about code * scale of its unit; |code| <= 127
  int32_t unit;                 // kA8: inputs a unit, 64, or 32 for weights with scale groups of 32
  int64_t unit_stride;          // units from token to token
  const float* unit_scales;     // [tokens][unit_stride]
  const int32_t* unit_surplus;  // [tokens][unit_stride] -128 * sum of the codes: what weights that are taken as 128 too
                                // large add to a sum, negated
};

// y[t][r] for value streams [begin, end): rows [begin, end) * 16, or * 32 for int4. Rows beyond the last are not
// written.
struct LinearArgs {
  WeightView weight;
  Activations x;
  int32_t begin, end;
  float* y;          // [tokens][y_stride]
  int64_t y_stride;  // floats
};

typedef void (*LinearKernel)(const LinearArgs& args) noexcept;

}  // namespace gossamer

#endif
