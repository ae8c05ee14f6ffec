// From the packed format of the processor's kernels to records.
//
// In the packed format a panel's values lie in order of word (4 inputs), row, input; a word of 64 mask bits has row r
// in bits 4r..4r+3. One lane looks a nibble's first value up by counting the bits before it.
#pragma once

#include "kernels/cuda/bitmap.h"
#include "kernels/cuda/launch.h"

namespace gossamer::cuda {

// The 16 mask words of a tile, word w in lane w as two halves, and how many of the tile's values lie before each word.
struct PackedTile {
  PerLane<uint32_t> low, high;  // rows 0..7 and 8..15
  PerLane<uint32_t> before;
  uint32_t values;  // of the tile

  static GOSSAMER_DEVICE PackedTile read(const WeightView& from, int64_t tile) {
    PackedTile out;
    lanes([&](int lane) {
      const uint64_t mask = lane < kBlockWords ? from.masks[tile * kBlockWords + lane] : 0;
      out.low[lane] = static_cast<uint32_t>(mask);
      out.high[lane] = static_cast<uint32_t>(mask >> 32);
      out.before[lane] = static_cast<uint32_t>(popcount(out.low[lane]) + popcount(out.high[lane]));
    });
    const PerLane<uint32_t> sums = inclusive_scan(out.before);
    out.values = broadcast(sums, kWarpLanes - 1);
    lanes([&](int lane) { out.before[lane] = sums[lane] - out.before[lane]; });
    return out;
  }
};

// One row's four inputs of a word: which are stored, and the number, within the tile, of the first value.
struct Nibble {
  uint32_t bits;
  uint32_t first;
};

GOSSAMER_DEVICE PerLane<Nibble> find(const PackedTile& tile, const PerLane<int>& word, const PerLane<int>& row) {
  const PerLane<uint32_t> low = shuffle(tile.low, word);
  const PerLane<uint32_t> high = shuffle(tile.high, word);
  const PerLane<uint32_t> before = shuffle(tile.before, word);
  PerLane<Nibble> out;
  lanes([&](int lane) {
    const int shift = 4 * (row[lane] % 8);
    const uint32_t half = row[lane] < 8 ? low[lane] : high[lane];
    const int skipped = (row[lane] < 8 ? 0 : popcount(low[lane])) + popcount(half & ((1U << shift) - 1));
    out[lane] = {half >> shift & 0xfU, before[lane] + static_cast<uint32_t>(skipped)};
  });
  return out;
}

// Value `index` of a panel: 16-bit floats as they are, codes as records have them.
GOSSAMER_DEVICE uint32_t packed_value(const WeightView& from, int panel, uint64_t index) {
  const int stream = from.type == ValueType::kInt4 ? panel / 2 : panel;
  const uint64_t offset = from.offsets != nullptr ? from.offsets[stream]
                                                  : static_cast<uint64_t>(stream) * static_cast<uint64_t>(from.stride);
  const uint8_t* values = from.values + offset;
  if (from.type == ValueType::kInt8) return values[index] ^ 0x80U;
  if (from.type == ValueType::kInt4) return (values[index] >> (4 * (panel % 2)) & 0xfU) ^ 0x8U;
  return values[2 * index] | static_cast<uint32_t>(values[2 * index + 1]) << 8;
}

// Words of each record. One warp a tile.
struct RecordSizes {
  using Args = RepackArgs;
  struct Shared {};
  static constexpr int kWarps = 4;
  static constexpr int kBlocks = 4;

  static GOSSAMER_DEVICE void run(const Block& block, const Args& args, Shared&) {
    warps<kWarps>([&](int warp) {
      const int64_t tile = static_cast<int64_t>(block.x) * kWarps + warp;
      if (tile >= static_cast<int64_t>(args.to.panels) * args.to.tiles) return;
      const PackedTile packed = PackedTile::read(args.from, tile);
      lanes([&](int lane) {
        if (lane == 0) args.sizes[tile] = bitmap_record_words(args.to.type, packed.values);
      });
    });
  }
};

// Where each record begins, and the largest stage of each size. One warp for the whole weight.
struct RecordOffsets {
  using Args = RepackArgs;
  struct Shared {};
  static constexpr int kWarps = 1;
  static constexpr int kBlocks = 1;

  static GOSSAMER_DEVICE void run(const Block&, const Args& args, Shared&) {
    warps<kWarps>([&](int) {
      const int64_t count = static_cast<int64_t>(args.to.panels) * args.to.tiles;
      uint32_t begin = 0;
      for (int64_t first = 0; first < count; first += kWarpLanes) {
        PerLane<uint32_t> size;
        lanes([&](int lane) { size[lane] = first + lane < count ? args.sizes[first + lane] : 0; });
        const PerLane<uint32_t> ends = inclusive_scan(size);
        lanes([&](int lane) {
          if (first + lane < count) args.offsets[first + lane] = begin + ends[lane] - size[lane];
        });
        begin += broadcast(ends, kWarpLanes - 1);
      }
      lanes([&](int lane) {
        if (lane == 0) args.offsets[count] = begin;
      });
      sync_warp();
      lanes([&](int lane) {
        for (int64_t tile = lane; tile < count; tile += kWarpLanes) {
          const auto place = static_cast<int>(tile % args.to.tiles);
          for (int size = 0; size < 3; ++size) {
            const int left = args.to.tiles - place;
            if (place % (1 << size) != 0) continue;
            const int taken = left < 1 << size ? left : 1 << size;
            atomic_max(args.largest + size, 4 * (args.offsets[tile + taken] - args.offsets[tile]));
          }
        }
      });
    });
  }
};

// Records of layout "bitmap". One warp a panel.
struct BitmapRecords {
  using Args = RepackArgs;
  struct Shared {};
  static constexpr int kWarps = 4;
  static constexpr int kBlocks = 4;

  static GOSSAMER_DEVICE void run(const Block& block, const Args& args, Shared&) {
    warps<kWarps>([&](int warp) {
      const int panel = block.x * kWarps + warp;
      if (panel >= args.to.panels) return;
      uint64_t consumed = 0;
      for (int i = 0; i < args.to.tiles; ++i) {
        const int64_t tile = static_cast<int64_t>(panel) * args.to.tiles + i;
        const PackedTile packed = PackedTile::read(args.from, tile);
        write(args, panel, consumed, packed, args.records + args.offsets[tile]);
        consumed += packed.values;
      }
    });
  }

  static GOSSAMER_DEVICE void write(const Args& args, int panel, uint64_t consumed, const PackedTile& packed,
                                    uint32_t* record) {
    PerLane<Nibble> found[8];
    PerLane<uint32_t> word;
    lanes([&](int lane) { word[lane] = 0; });
    GOSSAMER_UNROLL
    for (int nibble = 0; nibble < 8; ++nibble) {
      PerLane<int> from_word;
      PerLane<int> row;
      lanes([&](int lane) {
        from_word[lane] = 8 * (nibble / 4) + 2 * (lane % 4) + nibble / 2 % 2;
        row[lane] = lane / 4 + 8 * (nibble % 2);
      });
      found[nibble] = find(packed, from_word, row);
      lanes([&](int lane) { word[lane] |= found[nibble][lane].bits << (4 * nibble); });
    }
    const TileRanks ranks = rank_tile(word);
    lanes([&](int lane) {
      record[lane] = word[lane];
      GOSSAMER_UNROLL
      for (int nibble = 0; nibble < 8; ++nibble) {
        const int count = popcount(found[nibble][lane].bits);
        for (int i = 0; i < count; ++i) {
          const uint32_t value =
              packed_value(args.from, panel, consumed + found[nibble][lane].first + static_cast<uint32_t>(i));
          const uint32_t bit =
              (ranks.rank(lane, nibble) + static_cast<uint32_t>(i)) * static_cast<uint32_t>(value_bits(args.to.type));
          atomic_or(record + kLaneWords + bit / 32, value << (bit % 32));  // lanes share words
        }
      }
    });
  }
};

// Records of layout "nm24". One warp a tile.
struct Nm24Records {
  using Args = RepackArgs;
  struct Shared {};
  static constexpr int kWarps = 4;
  static constexpr int kBlocks = 4;

  // What a row keeps of four inputs: two places, rising, and their values.
  struct Kept {
    uint32_t places;  // the first in the low two bits
    uint32_t values[2];
  };

  // Fewer than two are filled up with a stored zero in a place that keeps the order.
  static GOSSAMER_DEVICE Kept keep(const Args& args, int panel, uint64_t start, const Nibble& nibble) {
    const uint32_t zero = args.to.type == ValueType::kInt8 ? 0x80U : args.to.type == ValueType::kInt4 ? 0x8U : 0U;
    Kept out = {1U << 2, {zero, zero}};
    uint32_t places[2] = {0, 0};
    int count = 0;
    for (uint32_t place = 0; place < 4; ++place) {
      if ((nibble.bits >> place & 1U) == 0 || count == 2) continue;
      places[count] = place;
      out.values[count] = packed_value(args.from, panel, start + nibble.first + static_cast<uint32_t>(count));
      ++count;
    }
    if (count == 2) out.places = places[0] | places[1] << 2;
    if (count == 1 && places[0] != 0) {
      out.places = places[0] << 2;
      out.values[1] = out.values[0];
      out.values[0] = zero;
    }
    return out;
  }

  static GOSSAMER_DEVICE void run(const Block& block, const Args& args, Shared&) {
    warps<kWarps>([&](int warp) {
      const int64_t tile = static_cast<int64_t>(block.x) * kWarps + warp;
      if (tile >= static_cast<int64_t>(args.to.panels) * args.to.tiles) return;
      const auto panel = static_cast<int>(tile / args.to.tiles);
      const auto start = static_cast<uint64_t>(tile % args.to.tiles) *
                         static_cast<uint64_t>(kTileRows * kTileCols * args.from.n / args.from.m);
      write(args, panel, start, PackedTile::read(args.from, tile),
            args.records + static_cast<uint32_t>(tile) * nm24_record_words(args.to.type));
    });
  }

  static GOSSAMER_DEVICE void write(const Args& args, int panel, uint64_t start, const PackedTile& packed,
                                    uint32_t* record) {
    // Metadata: lane 4g + 2h + c describes inputs 32h + 16c + 0..15 of rows g and g + 8.
    PerLane<uint32_t> metadata;
    lanes([&](int lane) { metadata[lane] = 0; });
    for (int i = 0; i < 8; ++i) {
      PerLane<int> word;
      PerLane<int> row;
      lanes([&](int lane) {
        word[lane] = 4 * (lane % 4) + i % 4;
        row[lane] = lane / 4 + i / 4 * 8;
      });
      const PerLane<Nibble> nibble = find(packed, word, row);
      lanes([&](int lane) {
        metadata[lane] |= keep(args, panel, start, nibble[lane]).places << (16 * (i / 4) + 4 * (i % 4));
      });
    }
    lanes([&](int lane) { record[lane] = metadata[lane]; });

    // Values: register r of half h has row g + 8 (r % 2), inputs 32h + 16 (r / 2) + 4t.
    for (int i = 0; i < 8; ++i) {
      const int half = i / 4;
      const int reg = i % 4;
      PerLane<int> word;
      PerLane<int> row;
      lanes([&](int lane) {
        word[lane] = 8 * half + 4 * (reg / 2) + lane % 4;
        row[lane] = lane / 4 + 8 * (reg % 2);
      });
      const PerLane<Nibble> nibble = find(packed, word, row);
      lanes([&](int lane) {
        const Kept kept = keep(args, panel, start, nibble[lane]);
        uint32_t* values = record + kLaneWords;
        if (args.to.type == ValueType::kInt8) {
          values[4 * lane + 2 * half + reg / 2] |= (kept.values[0] | kept.values[1] << 8) << (16 * (reg % 2));
        } else if (args.to.type == ValueType::kInt4) {
          values[2 * lane + half] |= kept.values[0] << (4 * reg) | kept.values[1] << (16 + 4 * reg);
        } else {
          values[128 * half + 4 * lane + reg] = kept.values[0] | kept.values[1] << 16;
        }
      });
    }
  }
};

}  // namespace gossamer::cuda
