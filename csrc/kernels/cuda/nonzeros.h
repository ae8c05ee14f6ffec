// y = x W^T for up to 4 tokens and weights that are nearly all zeros: a loop over the values that are not.
//
// Layout: a row is cut into chunks of kChunkCols inputs, and a chunk's non-zeros are entries of a step, 8 bits, and a
// value. The first entry's step is its input within the chunk, every other one's the distance from the entry before; a
// distance over 255 takes entries of 255 with value zero. Chunks are filled up to quads of 4 entries (step 0, value
// zero). Steps of a quad are bytes of a word, its values those of device_weight.h: 8, 4 or 2 bytes. `offsets` counts
// quads, [rows][chunks] and the end.
//
// A warp works on a row, each lane on every 32nd quad: a scan of the quads' steps says where each begins. Inputs stand
// in shared memory, those of all tokens side by side. Sums are floats in the order of the lane's quads, then in pairs
// of lanes, then by chunk: the same for every number of tokens.
#pragma once

#include "kernels/cuda/device_weight.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/values.h"

namespace gossamer::cuda {

template <ValueType kType, class T, int kTokens>
struct NonZerosKernel {
  using Args = NonZerosArgs;
  static constexpr int kWarps = 16;
  static constexpr int kBlocks = 2;
  static constexpr int kThreads = kWarps * kWarpLanes;

  struct Shared {
    alignas(8) uint16_t x[kChunkCols * kTokens];  // [column][token]
    uint32_t last;
  };

  // Four entries.
  struct Quad {
    uint32_t steps;
    uint32_t low, high;  // values; high for 16 bits alone
  };

  static GOSSAMER_DEVICE Quad load_quad(const Args& args, uint32_t quad, uint32_t end) {
    if (quad >= end) return {0, kType == ValueType::kInt8 ? 0x80808080U : kType == ValueType::kInt4 ? 0x8888U : 0U, 0};
    const uint32_t steps = args.weight.steps[quad];
    if constexpr (kType == ValueType::kInt8) {
      return {steps, load<uint32_t>(args.weight.values + static_cast<uint64_t>(quad) * 4), 0};
    } else if constexpr (kType == ValueType::kInt4) {
      return {steps, load<uint16_t>(args.weight.values + static_cast<uint64_t>(quad) * 2), 0};
    } else {
      const Uint2 values = load<Uint2>(args.weight.values + static_cast<uint64_t>(quad) * 8);
      return {steps, values.x, values.y};
    }
  }

  static GOSSAMER_DEVICE float value(const Quad& quad, int i) {
    if constexpr (kType == ValueType::kInt8) {
      return static_cast<float>(static_cast<int>(quad.low >> (8 * i) & 0xffU) - 128);
    } else if constexpr (kType == ValueType::kInt4) {
      return static_cast<float>(static_cast<int>(quad.low >> (4 * i) & 0xfU) - 8);
    } else {
      return T::to_f32(static_cast<uint16_t>((i < 2 ? quad.low : quad.high) >> (16 * (i % 2))));
    }
  }

  // The scale of an input of a row; those of float values and of whole rows are multiplied with elsewhere.
  static GOSSAMER_DEVICE float scale(const Args& args, int row, int group) {
    const int64_t at = (static_cast<int64_t>(row / kTileRows) * args.weight.groups + group) * kTileRows;
    return F16::to_f32(args.weight.scales[at + row % kTileRows]);
  }

  static GOSSAMER_DEVICE void run(const Block& block, const Args& args, Shared& shared) {
    const int first = block.y * kChunkCols;
    const int columns = args.weight.cols - first < kChunkCols ? args.weight.cols - first : kChunkCols;
    warps<kWarps>([&](int warp) {
      lanes([&](int lane) {
        for (int i = warp * kWarpLanes + lane; i < columns * kTokens; i += kThreads) {
          const int token = i / columns;  // neighbours read neighbours
          const int column = i % columns;
          shared.x[column * kTokens + token] =
              token < args.tokens ? args.x[token * args.x_stride + first + column] : static_cast<uint16_t>(0);
        }
      });
    });
    warps<kWarps>([&](int warp) {
      const auto row = [&](int i) { return (block.x * args.rows_each + i) * kWarps + warp; };
      Quads next = quads_of(block, args, row(0));
      for (int i = 0; i < args.rows_each; ++i) {
        const Quads quads = next;
        if (i + 1 < args.rows_each) next = quads_of(block, args, row(i + 1));  // meanwhile
        if (row(i) < args.weight.rows) multiply_row(block, args, row(i), quads, first, shared);
      }
      if (args.weight.chunks > 1) publish();
    });
    if (args.weight.chunks > 1) add_up(block, args, shared);
  }

  // Of a row, in the chunk that the block has.
  struct Quads {
    uint32_t begin, end;
  };

  static GOSSAMER_DEVICE Quads quads_of(const Block& block, const Args& args, int row) {
    if (row >= args.weight.rows) return {0, 0};
    const int64_t chunk = static_cast<int64_t>(row) * args.weight.chunks + block.y;
    return {args.weight.offsets[chunk], args.weight.offsets[chunk + 1]};
  }

  static GOSSAMER_DEVICE void multiply_row(const Block& block, const Args& args, int row, const Quads& quads, int first,
                                           const Shared& shared) {
    const uint32_t end = quads.end;
    uint32_t begin = quads.begin;
    uint32_t column = 0;  // of the last entry before these quads
    PerLane<float> sums[kTokens];
    PerLane<Quad> next;
    lanes([&](int lane) {
      GOSSAMER_UNROLL
      for (int token = 0; token < kTokens; ++token) sums[token][lane] = 0;
      next[lane] = load_quad(args, begin + static_cast<uint32_t>(lane), end);
    });
    while (begin < end) {
      const PerLane<Quad> quad = next;
      begin += kWarpLanes;
      PerLane<uint32_t> length;
      lanes([&](int lane) {
        next[lane] = load_quad(args, begin + static_cast<uint32_t>(lane), end);  // meanwhile
        const uint32_t pairs = (quad[lane].steps & 0x00ff00ffU) + (quad[lane].steps >> 8 & 0x00ff00ffU);
        length[lane] = (pairs & 0xffffU) + (pairs >> 16);
      });
      const PerLane<uint32_t> ends = inclusive_scan(length);
      lanes([&](int lane) {
        uint32_t at = column + ends[lane] - length[lane];
        GOSSAMER_UNROLL
        for (int i = 0; i < 4; ++i) {
          at += quad[lane].steps >> (8 * i) & 0xffU;
          float weight = value(quad[lane], i);
          if constexpr (kHasScales<kType>) {
            if (args.weight.group != 0) weight *= scale(args, row, (first + static_cast<int>(at)) / args.weight.group);
          }
          multiply_entry(shared.x + at * kTokens, weight, sums, lane);
        }
      });
      column += broadcast(ends, kWarpLanes - 1);
    }
    GOSSAMER_UNROLL
    for (int token = 0; token < kTokens; ++token) {
      const PerLane<float> sum = sum_of_lanes(sums[token]);
      lanes([&](int lane) {
        if (lane != 0 || token >= args.tokens) return;
        float all = sum[lane];
        if constexpr (kHasScales<kType>) {
          if (args.weight.group == 0) all *= scale(args, row, 0);
        }
        if (args.weight.chunks > 1)
          args.partials[partial(args, block.y, token, row)] = all;
        else
          write(args, token, row, all);
      });
    }
  }

  static GOSSAMER_DEVICE void multiply_entry(const uint16_t* x, float weight, PerLane<float> (&sums)[kTokens],
                                             int lane) {
    if constexpr (kTokens == 1) {
      sums[0][lane] += weight * T::to_f32(x[0]);
    } else {
      uint32_t words[kTokens / 2];
      if constexpr (kTokens == 2) {
        words[0] = load<uint32_t>(x);
      } else {
        const Uint2 both = load<Uint2>(x);
        words[0] = both.x;
        words[1] = both.y;
      }
      GOSSAMER_UNROLL
      for (int token = 0; token < kTokens; ++token)
        sums[token][lane] += weight * T::to_f32(static_cast<uint16_t>(words[token / 2] >> (16 * (token % 2))));
    }
  }

  static GOSSAMER_DEVICE int64_t partial(const Args& args, int chunk, int token, int row) {
    return (static_cast<int64_t>(chunk) * args.tokens + token) * args.weight.rows + row;
  }

  static GOSSAMER_DEVICE void write(const Args& args, int token, int row, float value) {
    if (args.bias != nullptr) value += T::to_f32(args.bias[row]);
    args.y[token * args.y_stride + row] = T::from_f32(value);
  }

  // The last block of these rows to arrive adds the chunks' sums up in their order.
  static GOSSAMER_DEVICE void add_up(const Block& block, const Args& args, Shared& shared) {
    warps<kWarps>([&](int warp) {
      lanes([&](int lane) {
        if (warp != 0 || lane != 0) return;
        shared.last = arrive(args.counters + block.x) + 1 == static_cast<uint32_t>(args.weight.chunks) ? 1 : 0;
        if (shared.last != 0) args.counters[block.x] = 0;  // ready for the next call
        publish();
      });
    });
    if (shared.last == 0) return;
    warps<kWarps>([&](int warp) {
      lanes([&](int lane) {
        const int rows = kWarps * args.rows_each;
        for (int i = warp * kWarpLanes + lane; i < rows * args.tokens; i += kThreads) {
          const int token = i / rows;
          const int row = block.x * rows + i % rows;
          if (row >= args.weight.rows) continue;
          float sum = 0;
          for (int chunk = 0; chunk < args.weight.chunks; ++chunk)
            sum += load_shared_by_blocks(args.partials + partial(args, chunk, token, row));
          write(args, token, row, sum);
        }
      });
    });
  }
};

}  // namespace gossamer::cuda
