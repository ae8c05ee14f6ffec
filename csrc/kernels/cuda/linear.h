// y = x W^T for up to 64 tokens, weights expanded in registers.
//
// A block is four warps with a panel of 16 rows each, and a share of the inputs: blockIdx.y of `splits`. Its
// activations stand in shared memory in the order of the matrix instruction's registers, a chunk of tiles at a time.
// Every warp streams its records through three buffers of its own, two ahead of the one it works on, and never waits
// for another warp while it does. Integer weights are multiplied as codes; a group's sum meets its scale in registers.
//
// With more than one split, blocks leave their sums in `partials`; the last one of a panel group to arrive adds them up
// in order of split. Splits depend on the weight alone, and columns of a matrix instruction do not mix: a token's
// result is bitwise the same whatever else is in the call.
#pragma once

#include "kernels/cuda/bitmap.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/nm24.h"

namespace gossamer::cuda {

// Tokens are padded to kColumns * 8.
template <class Tiles, int kColumns>
struct LinearKernel {
  using T = typename Tiles::Activation;
  using Args = LinearArgs;
  static constexpr int kWarps = kLinearWarps;
  static constexpr int kBlocks = Tiles::kScaled && kColumns == 8 ? 3 : 4;
  static constexpr int kThreads = kWarps * kWarpLanes;
  static constexpr int kChunkTiles = 16 / kColumns;
  static constexpr int kSlots = 3;
  static constexpr int kSlotWords = (kStageBytes + 3 * kCopyBytes) / 4;  // copies begin and end at multiples of 16

  struct Shared {
    Uint4 x[kChunkTiles * kColumns * 2 * kWarpLanes];  // [tile][column][half][lane]
    alignas(16) uint32_t stream[kWarps][kSlots][kSlotWords];
    typename Tiles::Table table;
    uint32_t last;
  };

  struct State {
    AsyncCopies copies;
    PerLane<Float4> sum[kColumns];             // of the scale group at hand, or of all
    PerLane<Float4> total[kColumns];           // scaled
    PerLane<float> upper, lower;               // scales of rows g and g + 8
    PerLane<uint16_t> next_upper, next_lower;  // as stored, of the group behind: on their way while this one is used
    const uint16_t* scales;                    // of the panel
    int next_group;                            // the first that is not fetched
    uint32_t word;                             // where the next record begins
    uint32_t origin;                           // word that the current slot begins with
    uint32_t next_begin, next_end;             // words of the next stage to copy
    int next_tile;                             // where that stage ends
    int slot;
    int left;  // tiles of the current stage
  };

  // The panel's share of tiles.
  struct Range {
    int panel, first, last;
    int64_t base;  // the panel's first tile in the weight
  };

  static GOSSAMER_DEVICE int share(const Args& args, int split) {
    const int units = (args.weight.tiles + kSplitTiles - 1) / kSplitTiles;
    const int tile = units * split / args.splits * kSplitTiles;
    return tile < args.weight.tiles ? tile : args.weight.tiles;
  }

  static GOSSAMER_DEVICE Range range(const Block& block, const Args& args, int warp) {
    const int panel = block.x * kWarps + warp;
    return {panel, share(args, block.y), share(args, block.y + 1), static_cast<int64_t>(panel) * args.weight.tiles};
  }

  static GOSSAMER_DEVICE void run(const Block& block, const Args& args, Shared& shared) {
    PerWarp<State, kWarps> states;
    warps<kWarps>([&](int warp) {
      lanes([&](int lane) {
        if (warp == 0 && lane < 16) Tiles::fill(shared.table, lane);
      });
      if (range(block, args, warp).panel < args.weight.panels)
        begin(args, range(block, args, warp), shared.stream[warp], states[warp]);
    });
    const int last = share(args, block.y + 1);
    for (int chunk = share(args, block.y); chunk < last; chunk += kChunkTiles) {
      const int tiles = chunk + kChunkTiles < last ? kChunkTiles : last - chunk;
      warps<kWarps>([&](int warp) { load_activations(args, chunk, tiles, warp, shared.x); });
      warps<kWarps>([&](int warp) {
        const Range mine = range(block, args, warp);
        if (mine.panel >= args.weight.panels) return;
        for (int tile = 0; tile < tiles; ++tile)
          multiply_tile(args, mine, chunk + tile, shared.x + tile * kColumns * 2 * kWarpLanes, shared.table,
                        shared.stream[warp], states[warp]);
      });
    }
    warps<kWarps>([&](int warp) {
      const Range mine = range(block, args, warp);
      if (mine.panel < args.weight.panels) finish(block, args, mine, states[warp]);
    });
    if (args.splits > 1) add_up(block, args, shared);
  }

  // --- activations ---

  static GOSSAMER_DEVICE uint16_t element(const Args& args, const uint16_t* row, int column) {
    return column < args.weight.cols ? row[column] : static_cast<uint16_t>(0);
  }

  static GOSSAMER_DEVICE uint32_t pair(const Args& args, const uint16_t* row, int column) {
    return element(args, row, column) | static_cast<uint32_t>(element(args, row, column + 1)) << 16;
  }

  static GOSSAMER_DEVICE void load_activations(const Args& args, int first, int tiles, int warp, Uint4* x) {
    const bool aligned = args.x_stride % 8 == 0 && reinterpret_cast<uintptr_t>(args.x) % 16 == 0;
    lanes([&](int lane) {
      for (int i = warp * kWarpLanes + lane; i < tiles * kColumns * 2 * kWarpLanes; i += kThreads) {
        const int half = i / kWarpLanes % 2;
        const int token = i / (2 * kWarpLanes) % kColumns * 8 + lane / 4;
        const int column = (first + i / (2 * kWarpLanes * kColumns)) * kTileCols;
        const auto at = [&](int index) { return column + Tiles::input(half, lane % 4, index); };
        Uint4 values = {0, 0, 0, 0};
        if (token < args.tokens) {
          const uint16_t* row = args.x + token * args.x_stride;
          if (!aligned || column + kTileCols > args.weight.cols) {
            values = {pair(args, row, at(0)), pair(args, row, at(1)), pair(args, row, at(2)), pair(args, row, at(3))};
          } else if constexpr (Tiles::kContiguous) {
            values = load<Uint4>(row + at(0));
          } else {
            values = {load<uint32_t>(row + at(0)), load<uint32_t>(row + at(1)), load<uint32_t>(row + at(2)),
                      load<uint32_t>(row + at(3))};
          }
        }
        x[i] = values;
      }
    });
  }

  // --- the stream of records ---

  static GOSSAMER_DEVICE void begin(const Args& args, const Range& mine, uint32_t (*slots)[kSlotWords], State& state) {
    lanes([&](int lane) {
      GOSSAMER_UNROLL
      for (int column = 0; column < kColumns; ++column) {
        state.sum[column][lane] = {0, 0, 0, 0};
        state.total[column][lane] = {0, 0, 0, 0};
      }
      state.upper[lane] = 0;
      state.lower[lane] = 0;
    });
    if constexpr (Tiles::kScaled) {
      state.scales = args.weight.scales + static_cast<int64_t>(mine.panel) * args.weight.groups * kTileRows;
      state.next_group = group_of(args, 2 * mine.first);
      fetch_scales(args, state);
    }
    state.word = Tiles::first_word(args.weight, mine.base + mine.first);
    state.origin = 0;
    state.next_begin = state.word;
    state.next_tile = mine.first;
    look_ahead(args, mine, state);
    state.slot = 0;
    state.left = 0;
    copy_stage(args, mine, slots[0], state);
    copy_stage(args, mine, slots[1], state);
  }

  // Finds where the next stage ends; the answer is not needed before the stage that is worked on meanwhile is done.
  static GOSSAMER_DEVICE void look_ahead(const Args& args, const Range& mine, State& state) {
    const int end = state.next_tile + args.weight.stage;
    state.next_tile = end < mine.last ? end : mine.last;
    state.next_end = Tiles::first_word(args.weight, mine.base + state.next_tile);
  }

  static GOSSAMER_DEVICE void copy_stage(const Args& args, const Range& mine, uint32_t* slot, State& state) {
    const uint32_t begin = state.next_begin / 4 * 4;
    const uint32_t end = state.next_end;
    state.copies.template copy<kStageBytes / 4 + 3>(slot, args.weight.records + begin,
                                                    state.next_begin < end ? end - begin : 0);
    sync_warp();  // matrix instructions want the lanes together again
    state.copies.commit();
    state.next_begin = end;
    look_ahead(args, mine, state);
  }

  static GOSSAMER_DEVICE void multiply_tile(const Args& args, const Range& mine, int tile, const Uint4* x,
                                            const typename Tiles::Table& table, uint32_t (*slots)[kSlotWords],
                                            State& state) {
    if (state.left == 0) {
      state.left = args.weight.stage;
      if (tile != mine.first) state.slot = state.slot == kSlots - 1 ? 0 : state.slot + 1;
      state.origin = state.word / 4 * 4;
      state.copies.template wait<1>();  // and nobody reads the slot before this one any more
      copy_stage(args, mine, slots[state.slot == 0 ? kSlots - 1 : state.slot - 1], state);
    }
    --state.left;
    const typename Tiles::Tile opened = Tiles::open(slots[state.slot] + (state.word - state.origin));
    state.word += Tiles::words(opened);
    multiply_half<0>(args, mine, tile, x, table, opened, state);
    multiply_half<1>(args, mine, tile, x, table, opened, state);
  }

  template <int kHalf>
  static GOSSAMER_DEVICE void multiply_half(const Args& args, const Range& mine, int tile, const Uint4* x,
                                            const typename Tiles::Table& table, const typename Tiles::Tile& opened,
                                            State& state) {
    // Groups of 32 inputs change between halves of a tile, all others between tiles.
    const bool small = args.weight.group == 32;
    const int in_group = args.weight.group == 0 ? 0x7fffffff : args.weight.group / kTileCols - 1;  // tiles; small: -1
    if constexpr (Tiles::kScaled) {
      if (kHalf == 0 ? small || (tile & in_group) == 0 || tile == mine.first : small) open_group(args, state);
    }
    const typename Tiles::Operands operands = Tiles::template operands<kHalf>(opened, table);
    GOSSAMER_UNROLL
    for (int column = 0; column < kColumns; ++column) {
      PerLane<Uint4> b;
      lanes([&](int lane) { b[lane] = x[(column * 2 + kHalf) * kWarpLanes + lane]; });
      Tiles::template multiply<kHalf>(state.sum[column], opened, operands, b);
    }
    if constexpr (Tiles::kScaled) {
      if (kHalf == 1 ? small || (tile & in_group) == in_group : small) close_group(state);
    }
  }

  // --- scales ---

  static GOSSAMER_DEVICE int group_of(const Args& args, int unit) {
    return args.weight.group == 0 ? 0 : unit >> (args.weight.group / 64);  // 32, 64 or 128 inputs
  }

  static GOSSAMER_DEVICE void fetch_scales(const Args& args, State& state) {
    if (state.next_group >= args.weight.groups) return;
    lanes([&](int lane) {
      const uint16_t* scales = state.scales + state.next_group * kTileRows + lane / 4;
      state.next_upper[lane] = scales[0];
      state.next_lower[lane] = scales[8];
    });
    ++state.next_group;
  }

  static GOSSAMER_DEVICE void open_group(const Args& args, State& state) {
    lanes([&](int lane) {
      state.upper[lane] = F16::to_f32(state.next_upper[lane]);
      state.lower[lane] = F16::to_f32(state.next_lower[lane]);
    });
    fetch_scales(args, state);
  }

  static GOSSAMER_DEVICE void close_group(State& state) {
    lanes([&](int lane) {
      GOSSAMER_UNROLL
      for (int column = 0; column < kColumns; ++column) {
        Float4& sum = state.sum[column][lane];
        Float4& total = state.total[column][lane];
        total = {total.x + state.upper[lane] * sum.x, total.y + state.upper[lane] * sum.y,
                 total.z + state.lower[lane] * sum.z, total.w + state.lower[lane] * sum.w};
        sum = {0, 0, 0, 0};
      }
    });
  }

  // --- results ---

  static GOSSAMER_DEVICE void write(const Args& args, int token, int row, float value) {
    if (args.bias != nullptr) value += T::to_f32(args.bias[row]);
    args.y[token * args.y_stride + row] = T::from_f32(value);
  }

  static GOSSAMER_DEVICE int64_t partial(const Args& args, int split, int token, int row) {
    return (static_cast<int64_t>(split) * args.tokens + token) * args.weight.panels * kTileRows + row;
  }

  static GOSSAMER_DEVICE void finish(const Block& block, const Args& args, const Range& mine, State& state) {
    state.copies.template wait<0>();
    if constexpr (Tiles::kScaled) close_group(state);  // one that the range ends in; zero otherwise
    lanes([&](int lane) {
      GOSSAMER_UNROLL
      for (int column = 0; column < kColumns; ++column) {
        const Float4& sum = Tiles::kScaled ? state.total[column][lane] : state.sum[column][lane];
        const float values[4] = {sum.x, sum.y, sum.z, sum.w};
        GOSSAMER_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int token = column * 8 + lane % 4 * 2 + i % 2;
          const int row = mine.panel * kTileRows + lane / 4 + i / 2 * 8;
          if (token >= args.tokens || row >= args.weight.rows) continue;
          if (args.splits > 1) {
            args.partials[partial(args, block.y, token, row)] = values[i];
          } else {
            write(args, token, row, values[i]);
          }
        }
      }
    });
    if (args.splits > 1) publish();
  }

  static GOSSAMER_DEVICE void add_up(const Block& block, const Args& args, Shared& shared) {
    const auto splits = static_cast<uint32_t>(args.splits);
    warps<kWarps>([&](int warp) {
      lanes([&](int lane) {
        if (warp != 0 || lane != 0) return;
        shared.last = arrive(args.counters + block.x) + 1 == splits ? 1 : 0;
        if (shared.last != 0) args.counters[block.x] = 0;  // ready for the next call
        publish();
      });
    });
    if (shared.last == 0) return;
    warps<kWarps>([&](int warp) {
      lanes([&](int lane) {
        constexpr int kRows = kWarps * kTileRows;
        for (int i = warp * kWarpLanes + lane; i < kRows * args.tokens; i += kThreads) {
          const int token = i / kRows;
          const int row = block.x * kRows + i % kRows;
          if (row >= args.weight.rows) continue;
          float sum = 0;
          for (int split = 0; split < args.splits; ++split)
            sum += load_shared_by_blocks(args.partials + partial(args, split, token, row));
          write(args, token, row, sum);
        }
      });
    });
  }
};

// Any number of tokens up to 64; the number of padded columns is the only thing that is chosen by it.
template <class Tiles>
int launch_linear(const LinearArgs& args, void* stream) {
  const Grid grid = {(args.weight.panels + kLinearWarps - 1) / kLinearWarps, args.splits};
  if (args.tokens <= 8) return launch<LinearKernel<Tiles, 1>>(grid, args, stream);
  if (args.tokens <= 16) return launch<LinearKernel<Tiles, 2>>(grid, args, stream);
  if (args.tokens <= 32) return launch<LinearKernel<Tiles, 4>>(grid, args, stream);
  return launch<LinearKernel<Tiles, 8>>(grid, args, stream);
}

}  // namespace gossamer::cuda
