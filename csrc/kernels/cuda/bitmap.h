// Tiles of layout "bitmap" (device_weight.h) as operands of `mma`.
//
// Where a value lies follows from how many come before it. Each nibble's count is a byte of two words, so one scan over
// the warp gives all eight ranks of every lane without a population count; and a nibble's four positions are filled
// from its values by byte permutations that a table of 16 entries holds.
#pragma once

#include "kernels/cuda/device_weight.h"
#include "kernels/cuda/values.h"

namespace gossamer::cuda {

// Bit counts of the eight nibbles of a word, as bytes: even nibbles in x, odd ones in y.
GOSSAMER_DEVICE Uint2 nibble_counts(uint32_t word) {
  uint32_t counts = word - (word >> 1 & 0x55555555U);
  counts = (counts & 0x33333333U) + (counts >> 2 & 0x33333333U);
  return {counts & 0x0f0f0f0fU, counts >> 4 & 0x0f0f0f0fU};
}

// Where a tile's values lie: the rank of each nibble's first value, two ranks a word. Nibble j has its rank in
// ranks[j % 2][j / 2 % 2], in the high half from nibble 4 on.
struct TileRanks {
  PerLane<uint32_t> ranks[2][2];
  uint32_t values;  // of the tile

  GOSSAMER_DEVICE uint32_t rank(int lane, int nibble) const { return low_rank(lane, nibble) & 0xffffU; }

  // The rank in the low half, and anything above it.
  GOSSAMER_DEVICE uint32_t low_rank(int lane, int nibble) const {
    return ranks[nibble % 2][nibble / 2 % 2][lane] >> (16 * (nibble / 4));
  }
};

// Bytes 0 and 2, or 1 and 3, of a word as its two halves.
GOSSAMER_DEVICE uint32_t two_bytes(uint32_t word, int first) { return word >> (8 * first) & 0x00ff00ffU; }

GOSSAMER_DEVICE TileRanks rank_tile(const PerLane<uint32_t>& word) {
  TileRanks out;
  PerLane<uint32_t> even;
  PerLane<uint32_t> odd;
  lanes([&](int lane) {
    const Uint2 counts = nibble_counts(word[lane]);
    even[lane] = counts.x;
    odd[lane] = counts.y;
  });
  const PerLane<uint32_t> even_sums = inclusive_scan(even);
  const PerLane<uint32_t> odd_sums = inclusive_scan(odd);
  // Of all lanes: nibbles 2k in byte k of one word, 2k + 1 in that of the other. All before nibble 2k, for k = 0 and 2
  // and for 1 and 3, are sums of pairs; those of nibble 2k come before 2k + 1.
  const uint32_t evens = broadcast(even_sums, kWarpLanes - 1);
  const uint32_t odds = broadcast(odd_sums, kWarpLanes - 1);
  const uint32_t pairs[2] = {two_bytes(evens, 0) + two_bytes(odds, 0), two_bytes(evens, 1) + two_bytes(odds, 1)};
  uint32_t start[2];
  start[0] = (pairs[0] + pairs[1]) << 16;
  start[1] = pairs[0] + start[0];
  out.values = (start[1] + pairs[1]) >> 16;
  lanes([&](int lane) {
    GOSSAMER_UNROLL
    for (int i = 0; i < 2; ++i) {
      out.ranks[0][i][lane] = start[i] + two_bytes(even_sums[lane] - even[lane], i);
      out.ranks[1][i][lane] = start[i] + two_bytes(evens, i) + two_bytes(odd_sums[lane] - odd[lane], i);
    }
  });
  return out;
}

constexpr int value_bits(ValueType type) { return type == ValueType::kInt8 ? 8 : type == ValueType::kInt4 ? 4 : 16; }

// Words of a record with so many values.
GOSSAMER_DEVICE uint32_t bitmap_record_words(ValueType type, uint32_t values) {
  return kLaneWords + (values * static_cast<uint32_t>(value_bits(type)) + 31) / 32;
}

template <ValueType kType, class T>
struct BitmapTiles {
  using Activation = T;
  static constexpr bool kScaled = kHasScales<kType>;
  static constexpr bool kContiguous = true;

  // Byte selectors by nibble: x for the first pair of positions, y for the second. 16-bit values: the high half of x
  // says how many bytes the first pair's values take. Narrow ones: from four codes and kCodeFill.
  struct Table {
    Uint2 entry[16];
  };

  struct Tile {
    TileRanks ranks;
    PerLane<uint32_t> word;
    const uint8_t* values;
  };

  struct Operands {
    PerLane<Uint4> a[2];
  };

  // Input, within the tile, of the first value in register `index` of the activations that half a tile takes.
  static GOSSAMER_DEVICE int input(int half, int t, int index) { return 32 * half + 8 * t + 2 * index; }

  static GOSSAMER_DEVICE uint32_t first_word(const DeviceWeight& weight, int64_t tile) { return weight.offsets[tile]; }

  static GOSSAMER_DEVICE void fill(Table& table, int nibble) {
    const auto bits = static_cast<uint32_t>(nibble);
    if constexpr (kScaled) {
      uint32_t rank = 0;
      const auto pair = [&](int first) {
        const uint32_t low = (bits >> first & 1U) != 0 ? rank++ : 4U;
        const uint32_t high = (bits >> (first + 1) & 1U) != 0 ? rank++ : 4U;
        return low | 0x5050U | high << 8;
      };
      const uint32_t x = pair(0);
      table.entry[nibble] = {x, pair(2)};
    } else {
      const auto pair = [](uint32_t two) {  // of two words whose high halves are zero
        return ((two & 1U) != 0 ? 0x10U : 0x22U) | ((two & 2U) == 0 ? 0x2200U : (two & 1U) != 0 ? 0x5400U : 0x1000U);
      };
      const auto first = static_cast<uint32_t>(popcount(bits & 3U));
      table.entry[nibble] = {pair(bits & 3U) | first << 17, pair(bits >> 2)};
    }
  }

  static GOSSAMER_DEVICE Tile open(const uint32_t* record) {
    Tile tile;
    lanes([&](int lane) { tile.word[lane] = record[lane]; });
    tile.ranks = rank_tile(tile.word);
    tile.values = reinterpret_cast<const uint8_t*>(record + kLaneWords);
    return tile;
  }

  static GOSSAMER_DEVICE uint32_t words(const Tile& tile) { return bitmap_record_words(kType, tile.ranks.values); }

  // The four positions of a nibble whose first value has the number `rank` in its low half: two registers.
  static GOSSAMER_DEVICE Uint2 spread(const uint8_t* values, uint32_t rank, const Uint2& entry) {
    if constexpr (kScaled) {
      constexpr uint32_t kBits = value_bits(kType);
      const uint8_t* from = values + (rank & 0xffffU) * kBits / 32 * 4;
      uint32_t codes = funnel_right(load<uint32_t>(from), load<uint32_t>(from + 4), rank * kBits);
      if constexpr (kType == ValueType::kInt4) codes = nibbles_to_bytes(codes);
      const auto pair = [&](uint32_t selector) {
        return codes_to_floats<T, kType>(permute_bytes(codes, kCodeFill<T, kType>, selector));
      };
      return {pair(entry.x), pair(entry.y)};
    } else {
      // One by one, since what is loaded so has zeros above it: no shifts, and a pair is one permutation.
      const uint8_t* first = values + 2 * (rank & 0xffffU);
      const uint8_t* second = first + (entry.x >> 16);
      return {permute_bytes(load<uint16_t>(first), load<uint16_t>(first + 2), entry.x),
              permute_bytes(load<uint16_t>(second), load<uint16_t>(second + 2), entry.y)};
    }
  }

  template <int kHalf>
  static GOSSAMER_DEVICE Operands operands(const Tile& tile, const Table& table) {
    Operands out;
    lanes([&](int lane) {
      GOSSAMER_UNROLL
      for (int step = 0; step < 2; ++step) {
        const int nibble = 4 * kHalf + 2 * step;
        const uint32_t bits = tile.word[lane] >> (4 * nibble);
        const Uint2 upper =
            spread(tile.values, tile.ranks.low_rank(lane, nibble), load<Uint2>(&table.entry[bits & 0xfU]));
        const Uint2 lower =
            spread(tile.values, tile.ranks.low_rank(lane, nibble + 1), load<Uint2>(&table.entry[bits >> 4 & 0xfU]));
        out.a[step][lane] = {upper.x, lower.x, upper.y, lower.y};
      }
    });
    return out;
  }

  template <int kHalf>
  static GOSSAMER_DEVICE void multiply(PerLane<Float4>& c, const Tile&, const Operands& operands,
                                       const PerLane<Uint4>& b) {
    PerLane<Uint2> first;
    PerLane<Uint2> second;
    lanes([&](int lane) {
      first[lane] = {b[lane].x, b[lane].y};
      second[lane] = {b[lane].z, b[lane].w};
    });
    mma<T>(c, operands.a[0], first);
    mma<T>(c, operands.a[1], second);
  }

  // Hands out the half's 16-bit floats by the place of the first of eight: put(row, input, Halves<8>).
  template <int kHalf, class Put>
  static GOSSAMER_DEVICE void scatter(const Tile&, const Operands& operands, Put&& put) {
    lanes([&](int lane) {
      const Uint4& a = operands.a[0][lane];
      const Uint4& b = operands.a[1][lane];
      const int input = 32 * kHalf + 8 * (lane % 4);
      put(lane / 4, input, Halves<8>{{a.x, a.z, b.x, b.z}});
      put(lane / 4 + 8, input, Halves<8>{{a.y, a.w, b.y, b.w}});
    });
  }
};

}  // namespace gossamer::cuda
