// Stored values as the 16-bit floats that the matrix instructions take. Codes are expanded as they are; their scales
// wait until the sums.
#pragma once

#include "formats/weight.h"
#include "kernels/cuda/mma.h"

namespace gossamer::cuda {

template <ValueType kType>
constexpr bool kHasScales = kType == ValueType::kInt8 || kType == ValueType::kInt4;

// Four bytes u0..u3, each code + 2^(bits - 1), as (u0, u1), (u2, u3) minus that offset.
template <class T, ValueType kType>
GOSSAMER_DEVICE Uint2 codes_to_pairs(uint32_t biased) {
  constexpr bool kWide = kType == ValueType::kInt8;
  if constexpr (kWide && T::kMagic == Bf16::kMagic) {
    // bf16 has 7 bits behind the leading one: the eighth, bit 7 of u, turns 128 into 256 and counts as 128 more.
    const uint32_t low = permute_bytes(biased, 0, 0x4140);
    const uint32_t high = permute_bytes(biased, 0, 0x4342);
    const auto pair = [](uint32_t u) {
      const uint32_t seven = (u & 0x007f007fU) | Bf16::kMagic;    // 128 + u % 128
      const uint32_t eighth = (~u & 0x00800080U) | Bf16::kMagic;  // 128 with the bit, 256 without
      return Bf16::subtract(seven, eighth);                       // u % 128, minus 128 without the bit
    };
    return {pair(low), pair(high)};
  } else {
    constexpr uint32_t kOffset = T::kMagic + (kWide ? 0x00800080U : 0x00080008U);
    constexpr uint32_t kMagicBytes = (T::kMagic & 0xff00ff00U) | (T::kMagic >> 8 & 0x00ff00ffU);
    return {T::subtract(permute_bytes(biased, kMagicBytes, 0x5150), kOffset),
            T::subtract(permute_bytes(biased, kMagicBytes, 0x5352), kOffset)};
  }
}

// Four nibbles in the low half of a word as four bytes.
GOSSAMER_DEVICE uint32_t nibbles_to_bytes(uint32_t nibbles) {
  const uint32_t spread = (nibbles | nibbles << 8) & 0x00ff00ffU;
  return (spread | spread << 4) & 0x0f0f0f0fU;
}

}  // namespace gossamer::cuda
