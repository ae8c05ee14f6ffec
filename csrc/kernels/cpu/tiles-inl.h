// The eight tiles of AMX, of at most 16 rows of 64 bytes: what kernels ask of them, in instructions and in loops with
// exactly their meaning, for tests. Both zero what a product or a load leaves of a tile.
#pragma once
#ifndef GOSSAMER_NS
#error "define GOSSAMER_NS first"
#endif
#include <stdint.h>
#include <string.h>

namespace gossamer {
namespace GOSSAMER_NS {

constexpr int kTileRows = 16;
constexpr int kTileBytes = 64;
constexpr int kTiles = 8;

// What ldtilecfg reads, palette 1.
struct alignas(64) TileShapes {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t bytes[16];  // of a row
  uint8_t rows[16];
};

inline void shape_tile(TileShapes& shapes, int tile, int rows, int bytes) {
  shapes.palette = 1;
  shapes.rows[tile] = (uint8_t)rows;
  shapes.bytes[tile] = (uint16_t)bytes;
}

inline float widened(uint16_t bf16) {
  const uint32_t bits = (uint32_t)bf16 << 16;
  float number;
  memcpy(&number, &bits, 4);
  return number;
}

#if defined(__AMX_TILE__) && defined(__AMX_INT8__) && defined(__AMX_BF16__)

// A thread's tiles for as long as this lives: behind it they are released, so that nobody saves them. As instructions
// of their own, since the intrinsics take literal numbers alone and do not say that they read memory.
class Tiles {
 public:
  explicit Tiles(const TileShapes& shapes) { __asm__ volatile("ldtilecfg %0" : : "m"(shapes)); }
  ~Tiles() { __asm__ volatile("tilerelease"); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  template <int kTile>
  void zero() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
  }
  // Rows that begin `stride` bytes apart.
  template <int kTile>
  void load(const void* from, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kTile>
  void store(void* to, int64_t stride) const {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(kTile) : "memory");
  }
  // sum[m][n] += the products of 4 bytes inputs[m][4k..] with 4 bytes codes[k][4n..], for all k. kSigned: the codes are
  // signed; the inputs nearly always are.
  template <int kSum, int kInputs, int kCodes, bool kSigned, bool kSignedInputs = true>
  void multiply() {
    static_assert(kSigned || kSignedInputs);
    if constexpr (!kSignedInputs)
      __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kInputs), "i"(kCodes));
    else if constexpr (kSigned)
      __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kInputs), "i"(kCodes));
    else
      __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kInputs), "i"(kCodes));
  }
  // sum[m][n] += the products of 2 bf16 left[m][2k..] with right[k][2n..]: the sum of those of the even ones, for all k
  // in order, and that of the odd ones, by fused multiply-adds that round to nearest even and flush subnormal numbers.
  template <int kSum, int kLeft, int kRight>
  void multiply_bf16() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kLeft), "i"(kRight));
  }
};

#else

// The same in loops. What the processor answers with a fault ends the process here, too.
class Tiles {
 public:
  explicit Tiles(const TileShapes& shapes) : shapes_(shapes) {
    must(shapes.palette == 1 && shapes.start_row == 0);
    for (int i = 0; i < 14; ++i) must(shapes.reserved[i] == 0);
    for (int i = 0; i < 16; ++i) {
      must(shapes.rows[i] <= kTileRows && shapes.bytes[i] <= kTileBytes);
      must((shapes.rows[i] == 0) == (shapes.bytes[i] == 0) && (i < kTiles || shapes.rows[i] == 0));
    }
    memset(tiles_, 0, sizeof tiles_);
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  template <int kTile>
  void zero() {
    must(shapes_.rows[kTile] > 0);
    memset(tiles_[kTile], 0, sizeof tiles_[kTile]);
  }
  template <int kTile>
  void load(const void* from, int64_t stride) {
    zero<kTile>();
    for (int r = 0; r < shapes_.rows[kTile]; ++r)
      memcpy(tiles_[kTile][r], (const uint8_t*)from + r * stride, shapes_.bytes[kTile]);
  }
  template <int kTile>
  void store(void* to, int64_t stride) const {
    must(shapes_.rows[kTile] > 0);
    for (int r = 0; r < shapes_.rows[kTile]; ++r)
      memcpy((uint8_t*)to + r * stride, tiles_[kTile][r], shapes_.bytes[kTile]);
  }
  template <int kSum, int kInputs, int kCodes, bool kSigned, bool kSignedInputs = true>
  void multiply() {
    must_fit<kSum, kInputs, kCodes>();
    const int rows = shapes_.rows[kSum], columns = shapes_.bytes[kSum], depth = shapes_.rows[kCodes];
    for (int m = 0; m < rows; ++m) {
      for (int n = 0; n < columns / 4; ++n) {
        uint32_t sum;  // wraps around
        memcpy(&sum, &tiles_[kSum][m][4 * n], 4);
        for (int k = 0; k < depth; ++k) {
          for (int i = 0; i < 4; ++i) {
            const uint8_t input = tiles_[kInputs][m][4 * k + i], code = tiles_[kCodes][k][4 * n + i];
            sum += (uint32_t)((kSignedInputs ? (int)(int8_t)input : (int)input) *
                              (kSigned ? (int)(int8_t)code : (int)code));
          }
        }
        memcpy(&tiles_[kSum][m][4 * n], &sum, 4);
      }
    }
    // Rows and columns beyond the shape are zero, and stay so.
  }
  template <int kSum, int kLeft, int kRight>
  void multiply_bf16() {
    must_fit<kSum, kLeft, kRight>();
    const int rows = shapes_.rows[kSum], columns = shapes_.bytes[kSum], depth = shapes_.rows[kRight];
    for (int m = 0; m < rows; ++m) {
      for (int n = 0; n < columns / 4; ++n) {
        float sums[2] = {0, 0};  // a product fits a float, so that nothing is rounded before it is added
        for (int k = 0; k < depth; ++k)
          for (int i = 0; i < 2; ++i) sums[i] += bf16(kLeft, m, 2 * k + i) * bf16(kRight, k, 2 * n + i);
        float sum;
        memcpy(&sum, &tiles_[kSum][m][4 * n], 4);
        sum += sums[0] + sums[1];
        memcpy(&tiles_[kSum][m][4 * n], &sum, 4);
      }
    }
  }

 private:
  template <int kSum, int kLeft, int kRight>
  void must_fit() const {
    static_assert(kSum != kLeft && kSum != kRight && kLeft != kRight);
    const int rows = shapes_.rows[kSum], columns = shapes_.bytes[kSum], depth = shapes_.rows[kRight];
    must(rows > 0 && depth > 0 && columns % 4 == 0);
    must(shapes_.rows[kLeft] == rows && shapes_.bytes[kLeft] == 4 * depth && shapes_.bytes[kRight] == columns);
  }
  float bf16(int tile, int row, int at) const {
    uint16_t half;
    memcpy(&half, &tiles_[tile][row][2 * at], 2);
    return widened(half);
  }
  static void must(bool holds) {
    if (!holds) __builtin_trap();
  }

  TileShapes shapes_;
  uint8_t tiles_[kTiles][kTileRows][kTileBytes];
};

#endif

}  // namespace GOSSAMER_NS
}  // namespace gossamer
