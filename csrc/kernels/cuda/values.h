// Stored values as the 16-bit floats that the matrix instructions take. Codes are expanded as they are; their scales
// wait until the sums.
#pragma once

#include "formats/weight.h"
#include "kernels/cuda/mma.h"

namespace gossamer::cuda {

template <ValueType kType>
constexpr bool kHasScales = kType == ValueType::kInt8 || kType == ValueType::kInt4;

// What stands beside codes while they are put in place (`permute_bytes`): the code of zero and, in byte 1, the high
// byte that makes a biased code the low bits of a float.
template <class T, ValueType kType>
constexpr uint32_t kCodeFill = (T::kMagic & 0xff00U) | (kType == ValueType::kInt8 ? 0x80U : 0x08U);

// Two codes, each biased by 2^(bits - 1) and under the magic high byte, as floats.
template <class T, ValueType kType>
GOSSAMER_DEVICE uint32_t codes_to_floats(uint32_t pair) {
  if constexpr (kType == ValueType::kInt8 && T::kMagic == Bf16::kMagic) {
    // bf16 has 7 bits behind the leading one: u from 128 on is read as 2u, below it as 128 + u. Less 256 that is the
    // code below zero, and twice the code from there on.
    const uint32_t code = Bf16::multiply_add(pair, 0x3f803f80U, 0xc380c380U);     // 1, -256
    const uint32_t excess = Bf16::multiply_relu(pair, 0x3f003f00U, 0xc300c300U);  // 0.5, -128
    return Bf16::subtract(code, excess);
  } else {
    return T::subtract(pair, T::kMagic + (kType == ValueType::kInt8 ? 0x00800080U : 0x00080008U));
  }
}

// The four nibbles in the low half of a word as four bytes.
GOSSAMER_DEVICE uint32_t nibbles_to_bytes(uint32_t nibbles) {
  const uint32_t spread = permute_bytes(nibbles, 0, 0x4140);
  return (spread | spread << 4) & 0x0f0f0f0fU;
}

}  // namespace gossamer::cuda
