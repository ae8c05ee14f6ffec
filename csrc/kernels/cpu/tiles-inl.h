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

#if defined(__AMX_TILE__) && defined(__AMX_INT8__)

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
  // sum[m][n] += the products of 4 signed bytes inputs[m][4k..] with 4 signed, or unsigned, bytes codes[k][4n..], for
  // all k.
  template <int kSum, int kInputs, int kCodes, bool kSigned>
  void multiply() {
    if constexpr (kSigned)
      __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kInputs), "i"(kCodes));
    else
      __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kInputs), "i"(kCodes));
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
  template <int kSum, int kInputs, int kCodes, bool kSigned>
  void multiply() {
    static_assert(kSum != kInputs && kSum != kCodes && kInputs != kCodes);
    const int rows = shapes_.rows[kSum];
    const int columns = shapes_.bytes[kSum];
    const int depth = shapes_.rows[kCodes];
    must(rows > 0 && depth > 0 && columns % 4 == 0);
    must(shapes_.rows[kInputs] == rows && shapes_.bytes[kInputs] == 4 * depth && shapes_.bytes[kCodes] == columns);
    for (int m = 0; m < rows; ++m) {
      for (int n = 0; n < columns / 4; ++n) {
        uint32_t sum;  // wraps around
        memcpy(&sum, &tiles_[kSum][m][4 * n], 4);
        for (int k = 0; k < depth; ++k) {
          for (int i = 0; i < 4; ++i) {
            const uint8_t code = tiles_[kCodes][k][4 * n + i];
            sum += (uint32_t)((int8_t)tiles_[kInputs][m][4 * k + i] * (kSigned ? (int)(int8_t)code : (int)code));
          }
        }
        memcpy(&tiles_[kSum][m][4 * n], &sum, 4);
      }
    }
    // Rows and columns beyond the shape are zero, and stay so.
  }

 private:
  static void must(bool holds) {
    if (!holds) __builtin_trap();
  }

  TileShapes shapes_;
  uint8_t tiles_[kTiles][kTileRows][kTileBytes];
};

#endif

}  // namespace GOSSAMER_NS
}  // namespace gossamer
