// Tiles of layout "nm24" (device_weight.h) as operands of `mma.sp`: nothing is expanded but the bits of a code.
#pragma once

#include "kernels/cuda/device_weight.h"
#include "kernels/cuda/values.h"

namespace gossamer::cuda {

template <ValueType kType, class T>
struct Nm24Tiles {
  using Activation = T;
  static constexpr bool kScaled = kHasScales<kType>;
  static constexpr bool kContiguous = false;

  struct Table {
    Uint2 entry[16];
  };

  struct Tile {
    PerLane<uint32_t> metadata;
    const uint8_t* values;
  };

  struct Operands {
    PerLane<Uint4> a;
  };

  static GOSSAMER_DEVICE int input(int half, int t, int index) { return 32 * half + 8 * index + 2 * t; }

  static GOSSAMER_DEVICE uint32_t first_word(const DeviceWeight&, int64_t tile) {
    return static_cast<uint32_t>(tile) * nm24_record_words(kType);
  }

  static GOSSAMER_DEVICE void fill(Table&, int) {}

  static GOSSAMER_DEVICE Tile open(const uint32_t* record) {
    Tile tile;
    lanes([&](int lane) { tile.metadata[lane] = record[lane]; });
    tile.values = reinterpret_cast<const uint8_t*>(record + kLaneWords);
    return tile;
  }

  static GOSSAMER_DEVICE uint32_t words(const Tile&) { return nm24_record_words(kType); }

  template <int kHalf>
  static GOSSAMER_DEVICE Operands operands(const Tile& tile, const Table&) {
    Operands out;
    lanes([&](int lane) {
      if constexpr (kType == ValueType::kInt8) {
        const Uint2 codes = load<Uint2>(tile.values + 16 * lane + 8 * kHalf);
        const auto pair = [](uint32_t four, uint32_t selector) {
          return codes_to_floats<T, kType>(permute_bytes(four, kCodeFill<T, kType>, selector));
        };
        out.a[lane] = {pair(codes.x, 0x5150), pair(codes.x, 0x5352), pair(codes.y, 0x5150), pair(codes.y, 0x5352)};
      } else if constexpr (kType == ValueType::kInt4) {
        const uint32_t codes = load<uint32_t>(tile.values + 8 * lane + 4 * kHalf);
        const auto pair = [&](int index) {
          return codes_to_floats<T, kType>((codes >> (4 * index) & 0x000f000fU) | T::kMagic);
        };
        out.a[lane] = {pair(0), pair(1), pair(2), pair(3)};
      } else {
        out.a[lane] = load<Uint4>(tile.values + 512 * kHalf + 16 * lane);
      }
    });
    return out;
  }

  template <int kHalf>
  static GOSSAMER_DEVICE void multiply(PerLane<Float4>& c, const Tile& tile, const Operands& operands,
                                       const PerLane<Uint4>& b) {
    mma_sparse<T, kHalf>(c, operands.a, b, tile.metadata);
  }

  // Hands out the half's 16-bit floats, zeros too, by the place of the first of four: put(row, input, Halves<4>).
  template <int kHalf, class Put>
  static GOSSAMER_DEVICE void scatter(const Tile& tile, const Operands& operands, Put&& put) {
    GOSSAMER_UNROLL
    for (int side = 0; side < 2; ++side) {  // the first or the last 16 inputs of the half
      PerLane<int> source;
      lanes([&](int lane) { source[lane] = lane / 4 * 4 + 2 * kHalf + side; });
      const PerLane<uint32_t> metadata = shuffle(tile.metadata, source);
      lanes([&](int lane) {
        const Uint4& a = operands.a[lane];
        GOSSAMER_UNROLL
        for (int i = 0; i < 2; ++i) {
          const uint32_t values = side == 0 ? (i == 0 ? a.x : a.y) : (i == 0 ? a.z : a.w);
          const uint32_t places = metadata[lane] >> (16 * i + 4 * (lane % 4)) & 0xfU;
          const auto at = [&](uint32_t input) {
            return input == (places & 3U) ? values & 0xffffU : input == (places >> 2) ? values >> 16 : 0;
          };
          put(lane / 4 + 8 * i, 32 * kHalf + 16 * side + 4 * (lane % 4),
              Halves<4>{{at(0) | at(1) << 16, at(2) | at(3) << 16}});
        }
      });
    }
  }
};

}  // namespace gossamer::cuda
