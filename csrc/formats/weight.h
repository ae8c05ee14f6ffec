// What every packed weight shares: tags, tile constants and the view that kernels read. Plain data only, so that files
// compiled for an ISA may include it.
//
// Tile (layout "cpu16x4-v1"). A matrix of rows (outputs) x cols (inputs) is cut into panels of 16 rows, each panel into
// words of 4 inputs: 64 positions, bit 4r + k of a word is row r, input k. 16 words are a block of 64 inputs. Rows are
// padded to whole panels and columns to whole blocks; padding is zero.
//
// Value streams. The values of a panel lie in order of word, then bit. int8 is one two's complement byte, bf16/f16 two
// bytes, f32 four, little-endian. int4 shares bytes between two panels: byte i of stream s holds value i of panel 2s in
// its low nibble and value i of panel 2s + 1 in its high one, both two's complement; the shorter of the two is filled
// up with zero nibbles. So a weight has one value stream a panel, or one a panel pair for int4.
//
// Scales (int8, int4). f16, [panels][groups][16 rows]; a weight is code * scale. A group is 32, 64 or 128 inputs, or
// the whole row.
#ifndef GOSSAMER_FORMATS_WEIGHT_H_
#define GOSSAMER_FORMATS_WEIGHT_H_

#include <stdint.h>

namespace gossamer {

enum class Format : uint8_t { kDense, kBitmap, kCsr, kNm };
enum class ValueType : uint8_t { kF32, kBf16, kF16, kInt8, kInt4 };

constexpr int kFormatCount = 4;
constexpr int kValueTypeCount = 5;

constexpr int kPanelRows = 16;
constexpr int kWordCols = 4;
constexpr int kWordBits = kPanelRows * kWordCols;
constexpr int kBlockCols = 64;
constexpr int kBlockWords = kBlockCols / kWordCols;
constexpr int kCsrSlot = 4;      // non-zeros of one row that a CSR slot holds
constexpr int kSpareBytes = 64;  // readable bytes behind every stream that kernels load in registers' width

// Where a packed weight lies. Streams that a format lacks are null.
struct WeightView {
  Format format;
  ValueType type;
  int32_t rows, cols;
  int32_t panels;  // ceil(rows / 16)
  int32_t blocks;  // ceil(cols / 64)
  int32_t group;   // inputs a scale serves; 0: the whole row, or no scales
  int32_t groups;  // scales a row; 0 for float types
  int32_t n, m;    // kNm: n stored values in every m inputs; otherwise 0
  int64_t stride;  // kDense, kNm: bytes a value stream; otherwise 0
  const uint8_t* values;
  const uint64_t* offsets;  // kBitmap, kCsr: [streams + 1] bytes into `values`
  const uint64_t* masks;    // kBitmap, kNm: [panels][blocks * 16] words
  const uint16_t* scales;   // [panels][groups][16]
  // kCsr, see csr.cc
  const uint8_t* columns;  // [slots][4]
  const uint16_t* lanes;   // [steps] rows that have a slot in this step
  const uint8_t* counts;   // [panels][csr_blocks] steps
  const uint64_t* slots;   // [panels + 1] first slot of a panel
  const uint64_t* steps;   // [panels + 1] first step of a panel
  int32_t csr_block;       // inputs a CSR block: 64, or 32 with groups of 32
  int32_t csr_blocks;
};

}  // namespace gossamer

#endif
