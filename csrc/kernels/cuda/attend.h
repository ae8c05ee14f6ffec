// Attention of one token over a cache of keys and values, the positions shared out among blocks.
//
// A block has a few of the heads that share keys (x) and a share of the positions (y); each of its warps takes four
// positions at a time, a lane kElements numbers of every head. Softmax runs along (Milakov & Gimelshein 2018): a
// maximum, the sum of what has been exponentiated under it, and the mix of values, which shrink when a larger one
// comes. Warps merge in shared memory, blocks through `partials`, by the last one to arrive, in their order. The shares
// depend on the token's place alone.
#pragma once

#include <math.h>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/mma.h"

namespace gossamer::cuda {

template <class T, int kQueries, int kElements>
struct AttendKernel {
  using Args = AttendArgs;
  static constexpr int kWarps = 8;
  static constexpr int kBlocks = 2;
  static constexpr int kThreads = kWarps * kWarpLanes;
  static constexpr int kAt = 4;  // positions
  static constexpr int kWidth = kElements * kWarpLanes;

  struct Shared {
    float mix[kWarps][kQueries][kWidth];
    float largest[kWarps][kQueries];
    float sum[kWarps][kQueries];
    uint32_t last;
  };

  struct Row {
    float values[kElements];
  };

  static GOSSAMER_DEVICE int groups(const Args& args) {  // of the heads that share keys
    return (args.heads / args.kv_heads + kQueries - 1) / kQueries;
  }

  // The head of query i of a block; heads that are not there repeat the last one.
  static GOSSAMER_DEVICE int head(const Block& block, const Args& args, int i) {
    const int shared_by = args.heads / args.kv_heads;
    const int within = block.x % groups(args) * kQueries + i;
    return block.x / groups(args) * shared_by + (within < shared_by ? within : shared_by - 1);
  }

  static GOSSAMER_DEVICE Row load_row(const uint16_t* from, int lane, int width) {
    Row out;
    const uint16_t* mine = from + lane * kElements;
    if (width % 4 == 0) {
      GOSSAMER_UNROLL
      for (int i = 0; i < kElements; i += 4) {
        const auto four = lane * kElements + i < width ? load<Halves<4>>(mine + i) : Halves<4>{};
        GOSSAMER_UNROLL
        for (int j = 0; j < 4; ++j) out.values[i + j] = T::to_f32(four[j]);
      }
    } else {
      GOSSAMER_UNROLL
      for (int i = 0; i < kElements; ++i) out.values[i] = lane * kElements + i < width ? T::to_f32(mine[i]) : 0.0F;
    }
    return out;
  }

  static GOSSAMER_DEVICE void run(const Block& block, const Args& args, Shared& shared) {
    const auto length = static_cast<int>(*args.place) + 1;
    const int share = (length + args.splits - 1) / args.splits;
    const int first = share * block.y < length ? share * block.y : length;
    const int last = first + share < length ? first + share : length;
    warps<kWarps>([&](int warp) { look(block, args, first, last, warp, shared); });
    warps<kWarps>([&](int warp) {
      lanes([&](int lane) {
        for (int i = warp * kWarpLanes + lane; i < kQueries * args.width; i += kThreads) {
          const int query = i / args.width;
          const int at = i % args.width;
          float largest = -INFINITY;
          for (int w = 0; w < kWarps; ++w)
            largest = shared.largest[w][query] > largest ? shared.largest[w][query] : largest;
          float sum = 0;
          float mix = 0;
          for (int w = 0; w < kWarps; ++w) {
            const float factor = shrink(shared.largest[w][query], largest);
            sum += factor * shared.sum[w][query];
            mix += factor * shared.mix[w][query][at];
          }
          float* to = partial(args, block.y, block.x * kQueries + query);
          to[2 + at] = mix;
          if (at == 0) {
            to[0] = largest;
            to[1] = sum;
          }
        }
      });
      publish();
    });
    add_up(block, args, shared);
  }

  // What was taken under one maximum, under a larger one. Nothing at all has the maximum -infinity.
  static GOSSAMER_DEVICE float shrink(float before, float after) {
    return before == -INFINITY ? 0.0F : expf(before - after);
  }

  static GOSSAMER_DEVICE void look(const Block& block, const Args& args, int first, int last, int warp,
                                   Shared& shared) {
    const int64_t kv_head = block.x / groups(args);
    const uint16_t* keys = args.keys + kv_head * args.capacity * args.width;
    const uint16_t* values = args.values + kv_head * args.capacity * args.width;
    PerLane<Row> queries[kQueries];
    PerLane<Row> mix[kQueries];
    float largest[kQueries];
    float sum[kQueries];
    GOSSAMER_UNROLL
    for (int i = 0; i < kQueries; ++i) {
      largest[i] = -INFINITY;
      sum[i] = 0;
      lanes([&](int lane) {
        queries[i][lane] =
            load_row(args.queries + static_cast<int64_t>(head(block, args, i)) * args.width, lane, args.width);
        GOSSAMER_UNROLL
        for (int j = 0; j < kElements; ++j) {
          queries[i][lane].values[j] *= args.scale;
          mix[i][lane].values[j] = 0;
        }
      });
    }
    for (int at = first + warp * kAt; at < last; at += kWarps * kAt) {
      PerLane<Row> value[kAt];
      float scores[kQueries][kAt];
      GOSSAMER_UNROLL
      for (int k = 0; k < kAt; ++k) {
        const int64_t place = static_cast<int64_t>(at + k < last ? at + k : last - 1) * args.width;
        PerLane<Row> key;
        lanes([&](int lane) {
          key[lane] = load_row(keys + place, lane, args.width);
          value[k][lane] = load_row(values + place, lane, args.width);
        });
        GOSSAMER_UNROLL
        for (int i = 0; i < kQueries; ++i) {
          PerLane<float> dot;
          lanes([&](int lane) {
            dot[lane] = 0;
            GOSSAMER_UNROLL
            for (int j = 0; j < kElements; ++j) dot[lane] += queries[i][lane].values[j] * key[lane].values[j];
          });
          scores[i][k] = at + k < last ? broadcast(sum_of_lanes(dot), 0) : -INFINITY;
        }
      }
      GOSSAMER_UNROLL
      for (int i = 0; i < kQueries; ++i) {
        float top = largest[i];
        GOSSAMER_UNROLL
        for (int k = 0; k < kAt; ++k) top = scores[i][k] > top ? scores[i][k] : top;
        const float factor = shrink(largest[i], top);
        float weights[kAt];
        sum[i] *= factor;
        GOSSAMER_UNROLL
        for (int k = 0; k < kAt; ++k) {
          weights[k] = shrink(scores[i][k], top);
          sum[i] += weights[k];
        }
        lanes([&](int lane) {
          GOSSAMER_UNROLL
          for (int j = 0; j < kElements; ++j) {
            float mixed = mix[i][lane].values[j] * factor;
            GOSSAMER_UNROLL
            for (int k = 0; k < kAt; ++k) mixed += weights[k] * value[k][lane].values[j];
            mix[i][lane].values[j] = mixed;
          }
        });
        largest[i] = top;
      }
    }
    GOSSAMER_UNROLL
    for (int i = 0; i < kQueries; ++i) {
      lanes([&](int lane) {
        GOSSAMER_UNROLL
        for (int j = 0; j < kElements; ++j) shared.mix[warp][i][lane * kElements + j] = mix[i][lane].values[j];
        if (lane != 0) return;
        shared.largest[warp][i] = largest[i];
        shared.sum[warp][i] = sum[i];
      });
    }
  }

  // Of a split and a query, counted through all blocks: the maximum, the sum, the mix.
  static GOSSAMER_DEVICE float* partial(const Args& args, int split, int query) {
    const int queries = args.kv_heads * groups(args) * kQueries;
    return args.partials + (static_cast<int64_t>(split) * queries + query) * (args.width + 2);
  }

  static GOSSAMER_DEVICE void add_up(const Block& block, const Args& args, Shared& shared) {
    warps<kWarps>([&](int warp) {
      lanes([&](int lane) {
        if (warp != 0 || lane != 0) return;
        shared.last = arrive(args.counters + block.x) + 1 == static_cast<uint32_t>(args.splits) ? 1 : 0;
        if (shared.last != 0) args.counters[block.x] = 0;  // ready for the next call
        publish();
      });
    });
    if (shared.last == 0) return;
    warps<kWarps>([&](int warp) {
      lanes([&](int lane) {
        for (int i = warp * kWarpLanes + lane; i < kQueries * args.width; i += kThreads) {
          const int query = i / args.width;
          const int at = i % args.width;
          if (block.x % groups(args) * kQueries + query >= args.heads / args.kv_heads) continue;
          float largest = -INFINITY;
          for (int split = 0; split < args.splits; ++split) {
            const float one = load_shared_by_blocks(partial(args, split, block.x * kQueries + query));
            largest = one > largest ? one : largest;
          }
          float sum = 0;
          float mix = 0;
          for (int split = 0; split < args.splits; ++split) {
            const float* from = partial(args, split, block.x * kQueries + query);
            const float factor = shrink(load_shared_by_blocks(from), largest);
            sum += factor * load_shared_by_blocks(from + 1);
            mix += factor * load_shared_by_blocks(from + 2 + at);
          }
          args.out[static_cast<int64_t>(head(block, args, query)) * args.width + at] = T::from_f32(mix / sum);
        }
      });
    });
  }
};

}  // namespace gossamer::cuda
