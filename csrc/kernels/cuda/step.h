// What a decoder does between its linears and its attention, three kernels a block: a step of one token is short, and
// each launch costs as much as a microsecond of weights.
//
// Numbers are read and written in 16 bits and worked on as floats. A block of the grid has one token (y) each.
#pragma once

#include <math.h>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/mma.h"

namespace gossamer::cuda {

// states += update, out = states / rms(states) * weight (Zhang & Sennrich 2019). One block a token.
template <class T>
struct AddNormKernel {
  using Args = AddNormArgs;
  static constexpr int kWarps = 16;
  static constexpr int kBlocks = 1;
  static constexpr int kThreads = kWarps * kWarpLanes;

  struct Shared {
    float squares[kWarps];
  };

  static GOSSAMER_DEVICE void run(const Block& block, const Args& args, Shared& shared) {
    const int64_t first = static_cast<int64_t>(block.y) * args.width;
    warps<kWarps>([&](int warp) {
      PerLane<float> squares;
      lanes([&](int lane) {
        squares[lane] = 0;
        for (int i = warp * kWarpLanes + lane; i < args.width; i += kThreads) {
          float value = T::to_f32(args.states[first + i]);
          if (args.update != nullptr) {
            const uint16_t sum = T::from_f32(value + T::to_f32(args.update[first + i]));
            args.states[first + i] = sum;
            value = T::to_f32(sum);
          }
          squares[lane] += value * value;
        }
      });
      const PerLane<float> sums = sum_of_lanes(squares);
      lanes([&](int lane) {
        if (lane == 0) shared.squares[warp] = sums[lane];
      });
    });
    float sum = 0;
    for (int warp = 0; warp < kWarps; ++warp) sum += shared.squares[warp];
    const float scale = 1.0F / sqrtf(sum / static_cast<float>(args.width) + args.eps);
    warps<kWarps>([&](int warp) {
      lanes([&](int lane) {
        for (int i = warp * kWarpLanes + lane; i < args.width; i += kThreads)
          args.out[first + i] = T::from_f32(T::to_f32(args.states[first + i]) * scale * args.weight[i]);
      });
    });
  }
};

// Turns queries and keys by their angles, and puts keys and values where the cache has the token's place. One warp a
// head: those of queries, of keys, of values.
template <class T>
struct RotateKernel {
  using Args = RotateArgs;
  struct Shared {};
  static constexpr int kWarps = 1;
  static constexpr int kBlocks = 1;

  static GOSSAMER_DEVICE void run(const Block& block, const Args& args, Shared&) {
    const int head = block.x;
    const int token = block.y;
    const int all = args.heads + 2 * args.kv_heads;
    const uint16_t* from = args.qkv + (static_cast<int64_t>(token) * all + head) * args.width;
    const int cached = head < args.heads + args.kv_heads ? head - args.heads : head - args.heads - args.kv_heads;
    uint16_t* to = head < args.heads ? args.queries : head < args.heads + args.kv_heads ? args.keys : args.values;
    const int64_t row = head < args.heads ? static_cast<int64_t>(head) * args.tokens + token
                                          : static_cast<int64_t>(cached) * args.capacity + args.places[token];
    to += row * args.width;
    const int half = head < args.heads + args.kv_heads ? args.half : 0;
    const float* cos = args.cos + static_cast<int64_t>(token) * args.half;
    const float* sin = args.sin + static_cast<int64_t>(token) * args.half;
    warps<kWarps>([&](int) {
      lanes([&](int lane) {
        for (int i = lane; i < half; i += kWarpLanes) {
          const float a = T::to_f32(from[i]);
          const float b = T::to_f32(from[i + half]);
          to[i] = T::from_f32(a * cos[i] - b * sin[i]);
          to[i + half] = T::from_f32(b * cos[i] + a * sin[i]);
        }
        for (int i = 2 * half + lane; i < args.width; i += kWarpLanes) to[i] = from[i];
      });
    });
  }
};

// out = silu(gate) * up, for rows that hold a gate's numbers and then as many of up.
template <class T>
struct GateKernel {
  using Args = GateArgs;
  struct Shared {};
  static constexpr int kWarps = 8;
  static constexpr int kBlocks = 1;
  static constexpr int kThreads = kWarps * kWarpLanes;

  static GOSSAMER_DEVICE void run(const Block& block, const Args& args, Shared&) {
    const uint16_t* gate = args.gate_up + static_cast<int64_t>(block.y) * 2 * args.width;
    uint16_t* out = args.out + static_cast<int64_t>(block.y) * args.width;
    warps<kWarps>([&](int warp) {
      lanes([&](int lane) {
        const int i = block.x * kThreads + warp * kWarpLanes + lane;
        if (i >= args.width) return;
        const float value = T::to_f32(gate[i]);
        out[i] = T::from_f32(value / (1.0F + expf(-value)) * T::to_f32(gate[args.width + i]));
      });
    });
  }
};

}  // namespace gossamer::cuda
