// Records back to a dense matrix.
#pragma once

#include "kernels/cuda/bitmap.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/nm24.h"

namespace gossamer::cuda {

// One warp a tile.
template <class Tiles>
struct ExpandKernel {
  using T = typename Tiles::Activation;
  using Args = ExpandArgs;
  static constexpr int kWarps = 4;
  static constexpr int kBlocks = 4;

  struct Shared {
    typename Tiles::Table table;
  };

  static GOSSAMER_DEVICE void run(const Block& block, const Args& args, Shared& shared) {
    warps<kWarps>([&](int warp) {
      lanes([&](int lane) {
        if (warp == 0 && lane < 16) Tiles::fill(shared.table, lane);
      });
    });
    warps<kWarps>([&](int warp) {
      const int64_t tile = static_cast<int64_t>(block.x) * kWarps + warp;
      if (tile >= static_cast<int64_t>(args.weight.panels) * args.weight.tiles) return;
      const typename Tiles::Tile opened = Tiles::open(args.weight.records + Tiles::first_word(args.weight, tile));
      write<0>(args, tile, opened, shared.table);
      write<1>(args, tile, opened, shared.table);
    });
  }

  template <int kHalf>
  static GOSSAMER_DEVICE void write(const Args& args, int64_t tile, const typename Tiles::Tile& opened,
                                    const typename Tiles::Table& table) {
    const auto panel = static_cast<int>(tile / args.weight.tiles);
    const auto first = static_cast<int>(tile % args.weight.tiles) * kTileCols;
    const typename Tiles::Operands operands = Tiles::template operands<kHalf>(opened, table);
    Tiles::template scatter<kHalf>(opened, operands, [&](int tile_row, int input, auto halves) {
      constexpr int kCount = sizeof(halves) / 2;
      const int row = panel * kTileRows + tile_row;
      const int column = first + input;
      if (row >= args.weight.rows || column >= args.weight.cols) return;
      if constexpr (Tiles::kScaled) {
        if (args.scaled) {
          const int group = args.weight.group == 0 ? 0 : column / args.weight.group;
          const uint16_t scale =
              args.weight.scales[(static_cast<int64_t>(panel) * args.weight.groups + group) * kTileRows + tile_row];
          const auto scaled = [&](int i) {
            return static_cast<uint32_t>(T::from_f32(T::to_f32(halves[i]) * F16::to_f32(scale)));
          };
          for (int i = 0; i < kCount; i += 2) halves.words[i / 2] = scaled(i) | scaled(i + 1) << 16;
        }
      }
      uint16_t* to = args.dense + row * args.stride + column;
      if (column + kCount <= args.weight.cols && reinterpret_cast<uintptr_t>(to) % sizeof(halves) == 0) {
        store(to, halves);  // a store of a few bytes costs as much as one of a sector
      } else {
        for (int i = 0; i < kCount && column + i < args.weight.cols; ++i) to[i] = halves[i];
      }
    });
  }
};

}  // namespace gossamer::cuda
