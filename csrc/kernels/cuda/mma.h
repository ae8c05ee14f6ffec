// 16-bit floats in pairs, and the two matrix instructions of the kernels.
//
// Fragments are those of the PTX manual, for lane 4g + t (g = 0..7, t = 0..3). Every register holds two 16-bit values,
// the first in the low half.
//
//   mma.m16n8k16      A[16][16]: x = row g, columns 2t, 2t+1; y = row g+8, the same; z = row g, columns 2t+8, 2t+9;
//                     w = row g+8, the same.   B[16][8]: x = rows 2t, 2t+1 of column g; y = rows 2t+8, 2t+9
//   mma.sp.m16n8k32   A[16][32] keeps 2 of every 4 columns: registers as above over the 16 kept columns, so x holds
//   what
//                     row g keeps of columns 4t..4t+3, and z what it keeps of 16+4t..; B[32][8]: registers x to w =
//                     rows 2t+8i, 2t+8i+1 of column g, i = 0..3.   Metadata: lane 4g + 2*selector + c describes
//                     columns 16c..16c+15, row g in the low half, row g+8 in the high one; 4 bits for each 4 columns,
//                     the first kept column in the low two, strictly rising
//   both              C[16][8], float: x, y = row g, columns 2t, 2t+1; z, w = row g+8
#pragma once

#include "kernels/cuda/simt.h"

#ifndef __CUDACC__
#include <cmath>

#include "common/half.h"
#endif

namespace gossamer::cuda {

#ifndef __CUDACC__
// Pairs of 16-bit numbers, a * b + c; by way of float, which changes nothing where the result is exact.
template <class Half>
uint32_t multiply_add_pairs(uint32_t a, uint32_t b, uint32_t c) {
  const auto half = [&](int shift) {
    const auto at = [&](uint32_t pair) { return Half::to_f32(static_cast<uint16_t>(pair >> shift)); };
    return static_cast<uint32_t>(Half::from_f32(std::fma(at(a), at(b), at(c)))) << shift;
  };
  return half(0) | half(16);
}
#endif

// 16-bit floats of consecutive inputs, two a word.
template <int kCount>
struct alignas(2 * kCount) Halves {
  uint32_t words[kCount / 2];

  GOSSAMER_DEVICE uint16_t operator[](int i) const { return static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2))); }
};

// IEEE half precision.
struct F16 {
  // 0x6400 | u is 1024 + u for u below 1024.
  static constexpr uint32_t kMagic = 0x64006400U;

  static GOSSAMER_DEVICE float to_f32(uint16_t bits) {
#ifdef __CUDACC__
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(bits));
    return out;
#else
    return f16_to_f32(bits);
#endif
  }
  static GOSSAMER_DEVICE uint16_t from_f32(float value) {
#ifdef __CUDACC__
    uint16_t out;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out) : "f"(value));
    return out;
#else
    return f32_to_f16(value);
#endif
  }
  // Pairs, a - b.
  static GOSSAMER_DEVICE uint32_t subtract(uint32_t a, uint32_t b) {
#ifdef __CUDACC__
    uint32_t out;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
    return out;
#else
    return multiply_add_pairs<F16>(b, 0xbc00bc00U, a);
#endif
  }
};

// bfloat16.
struct Bf16 {
  // 0x4300 | u is 128 + u for u below 128.
  static constexpr uint32_t kMagic = 0x43004300U;

  static GOSSAMER_DEVICE float to_f32(uint16_t bits) {
#ifdef __CUDACC__
    return __uint_as_float(static_cast<uint32_t>(bits) << 16);
#else
    return bf16_to_f32(bits);
#endif
  }
  static GOSSAMER_DEVICE uint16_t from_f32(float value) {
#ifdef __CUDACC__
    uint16_t out;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out) : "f"(value));
    return out;
#else
    return f32_to_bf16(value);
#endif
  }
  // sm_80 has no subtraction of bf16.
  static GOSSAMER_DEVICE uint32_t subtract(uint32_t a, uint32_t b) { return multiply_add(b, 0xbf80bf80U, a); }

  // Pairs, a * b + c.
  static GOSSAMER_DEVICE uint32_t multiply_add(uint32_t a, uint32_t b, uint32_t c) {
#ifdef __CUDACC__
    uint32_t out;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
    return out;
#else
    return multiply_add_pairs<Bf16>(a, b, c);
#endif
  }

  // The same, zero where it is below zero.
  static GOSSAMER_DEVICE uint32_t multiply_relu(uint32_t a, uint32_t b, uint32_t c) {
#ifdef __CUDACC__
    uint32_t out;
    asm("fma.rn.relu.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
    return out;
#else
    const uint32_t sum = multiply_add_pairs<Bf16>(a, b, c);
    return sum & ~((sum >> 15 & 0x00010001U) * 0xffffU);
#endif
  }
};

#ifndef __CUDACC__

namespace loop {

template <class T>
float half_of(uint32_t pair, int which) {
  return T::to_f32(static_cast<uint16_t>(pair >> (16 * which)));
}

// c += a b, exact products, one rounding to float at the end: no GPU is closer to the true sum.
template <int kDepth>
void multiply(PerLane<Float4>& c, const float (&a)[16][kDepth], const float (&b)[kDepth][8]) {
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    const int g = lane / 4;
    const int t = lane % 4;
    const auto dot = [&](int row, int column, float start) {
      double sum = static_cast<double>(start);
      for (int k = 0; k < kDepth; ++k) sum += static_cast<double>(a[row][k]) * static_cast<double>(b[k][column]);
      return static_cast<float>(sum);
    };
    Float4& out = c[lane];
    out = {dot(g, 2 * t, out.x), dot(g, 2 * t + 1, out.y), dot(g + 8, 2 * t, out.z), dot(g + 8, 2 * t + 1, out.w)};
  }
}

}  // namespace loop

#endif

// c += a b, k = 16; b's registers are given by lane.
template <class T>
GOSSAMER_DEVICE void mma(PerLane<Float4>& c, const PerLane<Uint4>& a, const PerLane<Uint2>& b) {
#ifdef __CUDACC__
  Float4& d = c.value;
  if constexpr (T::kMagic == F16::kMagic) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d.x), "+f"(d.y), "+f"(d.z), "+f"(d.w)
        : "r"(a.value.x), "r"(a.value.y), "r"(a.value.z), "r"(a.value.w), "r"(b.value.x), "r"(b.value.y));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d.x), "+f"(d.y), "+f"(d.z), "+f"(d.w)
        : "r"(a.value.x), "r"(a.value.y), "r"(a.value.z), "r"(a.value.w), "r"(b.value.x), "r"(b.value.y));
  }
#else
  float dense_a[16][16];
  float dense_b[16][8];
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    const int g = lane / 4;
    const int t = lane % 4;
    for (int i = 0; i < 2; ++i) {
      dense_a[g][2 * t + i] = loop::half_of<T>(a[lane].x, i);
      dense_a[g + 8][2 * t + i] = loop::half_of<T>(a[lane].y, i);
      dense_a[g][2 * t + 8 + i] = loop::half_of<T>(a[lane].z, i);
      dense_a[g + 8][2 * t + 8 + i] = loop::half_of<T>(a[lane].w, i);
      dense_b[2 * t + i][g] = loop::half_of<T>(b[lane].x, i);
      dense_b[2 * t + 8 + i][g] = loop::half_of<T>(b[lane].y, i);
    }
  }
  loop::multiply(c, dense_a, dense_b);
#endif
}

#ifdef __CUDACC__
// Before CUDA 12.5 the instruction goes by its first name.
#if __CUDACC_VER_MAJOR__ > 12 || (__CUDACC_VER_MAJOR__ == 12 && __CUDACC_VER_MINOR__ >= 5)
#define GOSSAMER_MMA_SP "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32."
#else
#define GOSSAMER_MMA_SP "mma.sp.sync.aligned.m16n8k32.row.col.f32."
#endif
#endif

// c += a b, k = 32, of which a keeps 16 a row.
template <class T, int kSelector>
GOSSAMER_DEVICE void mma_sparse(PerLane<Float4>& c, const PerLane<Uint4>& a, const PerLane<Uint4>& b,
                                const PerLane<uint32_t>& metadata) {
#ifdef __CUDACC__
  Float4& d = c.value;
  if constexpr (T::kMagic == F16::kMagic) {
    asm volatile(GOSSAMER_MMA_SP "f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9,%10,%11}, {%0,%1,%2,%3}, %12, %13;"
                 : "+f"(d.x), "+f"(d.y), "+f"(d.z), "+f"(d.w)
                 : "r"(a.value.x), "r"(a.value.y), "r"(a.value.z), "r"(a.value.w), "r"(b.value.x), "r"(b.value.y),
                   "r"(b.value.z), "r"(b.value.w), "r"(metadata.value), "n"(kSelector));
  } else {
    asm volatile(GOSSAMER_MMA_SP "bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9,%10,%11}, {%0,%1,%2,%3}, %12, %13;"
                 : "+f"(d.x), "+f"(d.y), "+f"(d.z), "+f"(d.w)
                 : "r"(a.value.x), "r"(a.value.y), "r"(a.value.z), "r"(a.value.w), "r"(b.value.x), "r"(b.value.y),
                   "r"(b.value.z), "r"(b.value.w), "r"(metadata.value), "n"(kSelector));
  }
#else
  float dense_a[16][32] = {};
  float dense_b[32][8];
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    const int g = lane / 4;
    const int t = lane % 4;
    const uint32_t a_words[4] = {a[lane].x, a[lane].y, a[lane].z, a[lane].w};
    const uint32_t b_words[4] = {b[lane].x, b[lane].y, b[lane].z, b[lane].w};
    for (int i = 0; i < 4; ++i) {
      const int row = g + 8 * (i % 2);
      const int half = i / 2;
      const uint32_t places = metadata[4 * g + 2 * kSelector + half] >> (16 * (i % 2) + 4 * t) & 0xfU;
      dense_a[row][16 * half + 4 * t + static_cast<int>(places & 3U)] = loop::half_of<T>(a_words[i], 0);
      dense_a[row][16 * half + 4 * t + static_cast<int>(places >> 2)] = loop::half_of<T>(a_words[i], 1);
      for (int j = 0; j < 2; ++j) dense_b[8 * i + 2 * t + j][g] = loop::half_of<T>(b_words[i], j);
    }
  }
  loop::multiply(c, dense_a, dense_b);
#endif
}

}  // namespace gossamer::cuda
