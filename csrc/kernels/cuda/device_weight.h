// What a packed weight looks like on a GPU. Plain data.
//
// A weight is a row of records, one for each tile of 16 rows x 64 inputs, tiles of a panel (16 rows) rising, panels
// rising. Lane 4g + t of a warp (g = 0..7, t = 0..3) owns rows g and g + 8 of the tile. A record is 32 words of 32
// bits, one a lane, and values behind them, filled up with zeros to a whole word.
//
// Layout "bitmap": the lane's word is 8 nibbles. Bit b of nibble j stands for row g + 8 * (j % 2) and input
// 32 * (j / 4) + 8 * t + 4 * (j / 2 % 2) + b: two nibbles are a lane's operands of one matrix instruction, whose 16
// columns are these inputs in the order that makes a lane's eight inputs neighbours. Values follow in order of nibble
// j, then lane, then bit: what the lanes read together lies together. `offsets[i]` is the first word of record i, and
// offsets[panels * tiles] the end of the last.
//
// Layout "nm24", two of every four inputs, is that of `mma.sp` (mma.h): the lane's word is its metadata, and its values
// are the registers of the two instructions of a tile, inputs 0..31 and 32..63, four registers each. Records have a
// fixed size. f16, bf16: [2 instructions][32 lanes][4 registers][2 values]; int8: [32 lanes][2][4][2]; int4: [32
// lanes][2], one word of 32 bits an instruction, in which register r has value 0 at bit 4r and value 1 at bit 16 + 4r.
//
// Values: f16 and bf16 as they are, int8 as code + 128, int4 as code + 8 and the lower nibble first. Scales as in the
// packed format: f16, [panels][groups][16].
#pragma once

#include <stdint.h>

#include "formats/weight.h"

namespace gossamer::cuda {

enum class Layout : uint8_t { kBitmap, kNm24 };

constexpr int kTileRows = 16;
constexpr int kTileCols = 64;
constexpr int kLaneWords = 32;     // of a record, before the values
constexpr int kMaxTokens = 64;     // of one call
constexpr int kSplitTiles = 4;     // the inputs of a call are split at multiples of so many tiles
constexpr int kStageBytes = 2544;  // what a warp keeps of the stream at a time: two tiles of half zeros, f16
constexpr int kCopyBytes = 16;     // of one asynchronous copy
constexpr int kSpareWords = 16;    // readable behind the last record

struct DeviceWeight {
  Layout layout;
  ValueType type;
  int32_t rows, cols;
  int32_t panels, tiles;  // tiles a panel
  int32_t group, groups;  // as in WeightView
  int32_t stage;          // tiles copied at a time: 1, 2 or 4
  const uint32_t* records;
  const uint32_t* offsets;  // kBitmap: [panels * tiles + 1]
  const uint16_t* scales;   // int8, int4
};

// A weight's non-zeros by row, for few tokens (nonzeros.h).
constexpr int kChunkCols = 4096;
constexpr int kMaxFewTokens = 4;  // of one call

struct NonZeros {
  ValueType type;
  int32_t rows, cols;
  int32_t chunks;         // a row
  int32_t group, groups;  // as in WeightView
  const uint32_t* offsets;
  const uint32_t* steps;
  const uint8_t* values;
  const uint16_t* scales;  // int8, int4
};

// Words of an nm24 record.
constexpr uint32_t nm24_record_words(ValueType type) {
  return kLaneWords + (type == ValueType::kInt8 ? 128 : type == ValueType::kInt4 ? 64 : 256);
}

}  // namespace gossamer::cuda
