// What a decoder does between its linears and its attention, three kernels a block: a step of one token is short, and
// each launch costs as much as a microsecond of weights.
//
// Numbers are read and written in 16 bits and worked on as floats. A block of the grid has one token (y) each.
#pragma once

#include <math.h>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/mma.h"

namespace gossamer::cuda {

// Eight numbers, widened to floats; 16 bits each where they are loaded from and stored to.
template <class T>
struct Eight {
  float values[8];

  static GOSSAMER_DEVICE Eight widened(const Halves<8>& halves) {
    Eight out;
    GOSSAMER_UNROLL
    for (int i = 0; i < 8; ++i) out.values[i] = T::to_f32(halves[i]);
    return out;
  }

  GOSSAMER_DEVICE Halves<8> rounded() const {
    Halves<8> out;
    GOSSAMER_UNROLL
    for (int i = 0; i < 4; ++i)
      out.words[i] = T::from_f32(values[2 * i]) | static_cast<uint32_t>(T::from_f32(values[2 * i + 1])) << 16;
    return out;
  }
};

// states += update, out = states / rms(states) * weight (Zhang & Sennrich 2019). One block a token.
//
// A step waits for this kernel alone, so what counts is how long one load takes and how many there are in a row: rows
// of up to kWide numbers are loaded at once, weights too, and stay in registers.
template <class T>
struct AddNormKernel {
  using Args = AddNormArgs;
  static constexpr int kWarps = 16;
  static constexpr int kBlocks = 1;
  static constexpr int kThreads = kWarps * kWarpLanes;
  static constexpr int kVectors = 2;  // of eight numbers, for a lane
  static constexpr int kWide = kVectors * 8 * kThreads;

  struct Shared {
    float squares[kWarps];
  };

  struct Kept {
    Eight<T> states[kVectors];
    Float4 weight[kVectors][2];
  };

  static GOSSAMER_DEVICE bool aligned(const void* address) { return reinterpret_cast<uintptr_t>(address) % 16 == 0; }

  static GOSSAMER_DEVICE void run(const Block& block, const Args& args, Shared& shared) {
    const bool vectors = args.width % 8 == 0 && args.width <= kWide && aligned(args.states) && aligned(args.update) &&
                         aligned(args.weight) && aligned(args.out);
    if (vectors) {
      run_wide(static_cast<int64_t>(block.y) * args.width, args, shared);
    } else {
      run_any(static_cast<int64_t>(block.y) * args.width, args, shared);
    }
  }

  static GOSSAMER_DEVICE float scale_of(const Args& args, const Shared& shared) {
    float sum = 0;
    for (int warp = 0; warp < kWarps; ++warp) sum += shared.squares[warp];
    return 1.0F / sqrtf(sum / static_cast<float>(args.width) + args.eps);
  }

  static GOSSAMER_DEVICE void add_squares(const PerLane<float>& squares, int warp, Shared& shared) {
    const PerLane<float> sums = sum_of_lanes(squares);
    lanes([&](int lane) {
      if (lane == 0) shared.squares[warp] = sums[lane];
    });
  }

  static GOSSAMER_DEVICE int place(int warp, int lane, int vector) {
    return ((vector * kWarps + warp) * kWarpLanes + lane) * 8;
  }

  static GOSSAMER_DEVICE void run_wide(int64_t first, const Args& args, Shared& shared) {
    PerWarp<PerLane<Kept>, kWarps> all;
    warps<kWarps>([&](int warp) {
      PerLane<float> squares;
      lanes([&](int lane) {
        Kept& kept = all[warp][lane];
        Halves<8> states[kVectors];
        Halves<8> updates[kVectors];
        GOSSAMER_UNROLL
        for (int v = 0; v < kVectors; ++v) {
          const int at = place(warp, lane, v);
          const bool there = at < args.width;
          states[v] = there ? load<Halves<8>>(args.states + first + at) : Halves<8>{};
          updates[v] = there && args.update != nullptr ? load<Halves<8>>(args.update + first + at) : Halves<8>{};
          GOSSAMER_UNROLL
          for (int i = 0; i < 2; ++i)
            kept.weight[v][i] = there ? load<Float4>(args.weight + at + 4 * i) : Float4{0, 0, 0, 0};
        }
        squares[lane] = 0;
        GOSSAMER_UNROLL
        for (int v = 0; v < kVectors; ++v) {
          const int at = place(warp, lane, v);
          kept.states[v] = Eight<T>::widened(states[v]);
          if (args.update != nullptr) {
            const Eight<T> update = Eight<T>::widened(updates[v]);
            GOSSAMER_UNROLL
            for (int i = 0; i < 8; ++i) kept.states[v].values[i] += update.values[i];
            const Halves<8> sums = kept.states[v].rounded();
            if (at < args.width) store(args.states + first + at, sums);
            kept.states[v] = Eight<T>::widened(sums);
          }
          GOSSAMER_UNROLL
          for (int i = 0; i < 8; ++i) squares[lane] += kept.states[v].values[i] * kept.states[v].values[i];
        }
      });
      add_squares(squares, warp, shared);
    });
    const float scale = scale_of(args, shared);
    warps<kWarps>([&](int warp) {
      lanes([&](int lane) {
        Kept& kept = all[warp][lane];
        GOSSAMER_UNROLL
        for (int v = 0; v < kVectors; ++v) {
          const int at = place(warp, lane, v);
          if (at >= args.width) continue;
          GOSSAMER_UNROLL
          for (int i = 0; i < 2; ++i) {
            const Float4& weight = kept.weight[v][i];
            float* values = kept.states[v].values + 4 * i;
            values[0] = values[0] * scale * weight.x;
            values[1] = values[1] * scale * weight.y;
            values[2] = values[2] * scale * weight.z;
            values[3] = values[3] * scale * weight.w;
          }
          store(args.out + first + at, kept.states[v].rounded());
        }
      });
    });
  }

  static GOSSAMER_DEVICE void run_any(int64_t first, const Args& args, Shared& shared) {
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
      add_squares(squares, warp, shared);
    });
    const float scale = scale_of(args, shared);
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
