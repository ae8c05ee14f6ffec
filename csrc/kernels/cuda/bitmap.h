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

  GOSSAMER_DEVICE uint32_t rank(int lane, int nibble) const {
    return ranks[nibble % 2][nibble / 2 % 2][lane] >> (16 * (nibble / 4)) & 0xffffU;
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

  // Byte selectors by nibble. 16-bit values: x has those of the first pair of positions and, in the high half, of the
  // second; y picks the values that are left for the second. Narrow ones: x has the four positions' bytes.
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
    uint32_t narrow = 0;
    uint32_t rank = 0;
    for (int bit = 0; bit < 4; ++bit) narrow |= ((bits >> bit & 1U) != 0 ? rank++ : 4U) << (4 * bit);
    const auto pair = [](uint32_t two) {
      return ((two & 1U) != 0 ? 0x10U : 0x44U) | ((two & 2U) == 0 ? 0x4400U : (two & 1U) != 0 ? 0x3200U : 0x1000U);
    };
    const auto before = static_cast<uint32_t>(popcount(bits & 3U));
    table.entry[nibble] = value_bits(kType) == 16
                              ? Uint2{pair(bits & 3U) | pair(bits >> 2) << 16, 0x3210U + 0x2222U * before}
                              : Uint2{narrow, 0};
  }

  static GOSSAMER_DEVICE Tile open(const uint32_t* record) {
    Tile tile;
    lanes([&](int lane) { tile.word[lane] = record[lane]; });
    tile.ranks = rank_tile(tile.word);
    tile.values = reinterpret_cast<const uint8_t*>(record + kLaneWords);
    return tile;
  }

  static GOSSAMER_DEVICE uint32_t words(const Tile& tile) { return bitmap_record_words(kType, tile.ranks.values); }

  // The four positions of a nibble whose first value is number `rank`: two registers.
  static GOSSAMER_DEVICE Uint2 spread(const uint8_t* values, uint32_t rank, const Uint2& entry) {
    if constexpr (value_bits(kType) == 16) {
      const uint8_t* from = values + rank / 2 * 4;
      const uint32_t middle = load<uint32_t>(from + 4);
      const uint32_t low = funnel_right(load<uint32_t>(from), middle, rank * 16);
      const uint32_t high = funnel_right(middle, load<uint32_t>(from + 8), rank * 16);
      return {permute_bytes(low, 0, entry.x), permute_bytes(permute_bytes(low, high, entry.y), 0, entry.x >> 16)};
    } else if constexpr (kType == ValueType::kInt8) {
      const uint8_t* from = values + rank / 4 * 4;
      const uint32_t four = funnel_right(load<uint32_t>(from), load<uint32_t>(from + 4), rank * 8);
      return codes_to_pairs<T, kType>(permute_bytes(four, 0x80808080U, entry.x));
    } else {
      const uint8_t* from = values + rank / 8 * 4;
      const uint32_t four = funnel_right(load<uint32_t>(from), load<uint32_t>(from + 4), rank * 4);
      return codes_to_pairs<T, kType>(permute_bytes(nibbles_to_bytes(four & 0xffffU), 0x08080808U, entry.x));
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
        const Uint2 upper = spread(tile.values, tile.ranks.rank(lane, nibble), load<Uint2>(&table.entry[bits & 0xfU]));
        const Uint2 lower =
            spread(tile.values, tile.ranks.rank(lane, nibble + 1), load<Uint2>(&table.entry[bits >> 4 & 0xfU]));
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
