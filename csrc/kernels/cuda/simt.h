// A warp and a block, so that one kernel source compiles twice: by nvcc for the GPU, and by any C++ compiler as loops
// over lanes and warps, which is how kernels are tested where there is no GPU.
//
// A kernel is written in phases. `lanes(f)` runs f(lane) for every lane of the warp: once, with its own lane, on the
// GPU; 32 times in the loop build. What a lane keeps from one phase to the next stands in a PerLane, which is a plain
// register on the GPU. Within a phase a lane may branch and loop as it likes; between phases the warp's control flow
// is uniform. Shuffles stand between phases. `warps<N>(f)` runs f(warp) for the N warps of a block and ends with a
// barrier; PerWarp is to it what PerLane is to `lanes`. Lanes that hand something over through memory need `sync_warp`
// between.
//
// The loop build can run lanes, warps and blocks backwards and let asynchronous copies land as late as they may
// (`schedule`); a kernel whose result then changes has a race.
#pragma once

#include <stdint.h>
#include <string.h>

#ifndef __CUDACC__
#include <stdlib.h>

#include <vector>
#endif

#ifdef __CUDACC__
#define GOSSAMER_DEVICE __device__ __forceinline__
#define GOSSAMER_UNROLL _Pragma("unroll")
#else
#define GOSSAMER_DEVICE inline
#define GOSSAMER_UNROLL
#endif

namespace gossamer::cuda {

constexpr int kWarpLanes = 32;

struct alignas(8) Uint2 {
  uint32_t x, y;
};
struct alignas(16) Uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) Float4 {
  float x, y, z, w;
};

// --- lanes and warps -------------------------------------------------------------------------------------------------

#ifdef __CUDACC__

template <class T>
struct PerLane {
  T value;
  GOSSAMER_DEVICE T& operator[](int) { return value; }
  GOSSAMER_DEVICE const T& operator[](int) const { return value; }
};

template <class T, int kWarps>
struct PerWarp {
  T value;
  GOSSAMER_DEVICE T& operator[](int) { return value; }
};

template <class F>
GOSSAMER_DEVICE void lanes(F&& f) {
  f(static_cast<int>(threadIdx.x % kWarpLanes));
}

template <int kWarps, class F>
GOSSAMER_DEVICE void warps(F&& f) {
  f(static_cast<int>(threadIdx.x / kWarpLanes));
  __syncthreads();
}

GOSSAMER_DEVICE void sync_warp() { __syncwarp(); }

#else

struct Schedule {
  bool backwards = false;
  bool late_copies = false;
};

inline Schedule& schedule() {
  static Schedule chosen;
  return chosen;
}

template <class F>
void in_order(int count, F&& f) {
  if (schedule().backwards) {
    for (int i = count - 1; i >= 0; --i) f(i);
  } else {
    for (int i = 0; i < count; ++i) f(i);
  }
}

template <class T>
struct PerLane {
  T value[kWarpLanes];
  T& operator[](int lane) { return value[lane]; }
  const T& operator[](int lane) const { return value[lane]; }
};

template <class T, int kWarps>
struct PerWarp {
  T value[kWarps];
  T& operator[](int warp) { return value[warp]; }
};

template <class F>
void lanes(F&& f) {
  in_order(kWarpLanes, f);
}

template <int kWarps, class F>
void warps(F&& f) {
  in_order(kWarps, f);
}

inline void sync_warp() {}

#endif

// --- exchange between lanes ------------------------------------------------------------------------------------------

// Every lane names the lane whose value it gets.
template <class T>
GOSSAMER_DEVICE PerLane<T> shuffle(const PerLane<T>& from, const PerLane<int>& source) {
  PerLane<T> out;
#ifdef __CUDACC__
  out.value = __shfl_sync(0xffffffffU, from.value, source.value);
#else
  for (int lane = 0; lane < kWarpLanes; ++lane) out[lane] = from[source[lane]];
#endif
  return out;
}

// The value of one lane, for all.
template <class T>
GOSSAMER_DEVICE T broadcast(const PerLane<T>& from, int lane) {
#ifdef __CUDACC__
  return __shfl_sync(0xffffffffU, from.value, lane);
#else
  return from[lane];
#endif
}

// Sums over the lanes up to and including each one. Packed counters may share a word while no sum overflows.
GOSSAMER_DEVICE PerLane<uint32_t> inclusive_scan(PerLane<uint32_t> values) {
#ifdef __CUDACC__
  // The shuffle's own predicate says whether there is a lane so far below.
  GOSSAMER_UNROLL
  for (int delta = 1; delta < kWarpLanes; delta *= 2)
    asm volatile(
        "{ .reg .u32 below; .reg .pred there;\n"
        "shfl.sync.up.b32 below|there, %0, %1, 0, 0xffffffff;\n"
        "@there add.u32 %0, %0, below; }"
        : "+r"(values.value)
        : "r"(delta));
#else
  for (int lane = 1; lane < kWarpLanes; ++lane) values[lane] += values[lane - 1];
#endif
  return values;
}

// The sum over all lanes, for each of them; added up in pairs, the same way everywhere.
GOSSAMER_DEVICE PerLane<float> sum_of_lanes(PerLane<float> values) {
#ifdef __CUDACC__
  GOSSAMER_UNROLL
  for (int delta = kWarpLanes / 2; delta > 0; delta /= 2)
    values.value += __shfl_xor_sync(0xffffffffU, values.value, delta);
#else
  for (int delta = kWarpLanes / 2; delta > 0; delta /= 2) {
    const PerLane<float> before = values;
    for (int lane = 0; lane < kWarpLanes; ++lane) values[lane] = before[lane] + before[lane ^ delta];
  }
#endif
  return values;
}

// --- bits ------------------------------------------------------------------------------------------------------------

GOSSAMER_DEVICE int popcount(uint32_t bits) {
#ifdef __CUDACC__
  return __popc(bits);
#else
  return __builtin_popcount(bits);
#endif
}

// Four bytes picked from the eight of (low, high) by the selector's four low nibbles, all of them below 8. The
// instruction as such: the intrinsic would mask a selector that it does not know.
GOSSAMER_DEVICE uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
#ifdef __CUDACC__
  uint32_t out;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(low), "r"(high), "r"(selector));
  return out;
#else
  if ((selector & 0x8888U) != 0) abort();  // would repeat the byte's sign
  const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i)
    out |= static_cast<uint32_t>(bytes >> (8 * (selector >> (4 * i) & 7U)) & 0xffU) << (8 * i);
  return out;
#endif
}

// The low word of (high, low) >> shift % 32.
GOSSAMER_DEVICE uint32_t funnel_right(uint32_t low, uint32_t high, uint32_t shift) {
#ifdef __CUDACC__
  return __funnelshift_r(low, high, shift);
#else
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> shift % 32);
#endif
}

// --- memory ----------------------------------------------------------------------------------------------------------

// Loads of aligned plain data; a cast on the GPU, a copy elsewhere, where a cast would break the aliasing rules.
template <class T>
GOSSAMER_DEVICE T load(const void* from) {
#ifdef __CUDACC__
  return *static_cast<const T*>(from);
#else
  T out;
  memcpy(&out, from, sizeof(T));
  return out;
#endif
}

template <class T>
GOSSAMER_DEVICE void store(void* to, const T& value) {
#ifdef __CUDACC__
  *static_cast<T*>(to) = value;
#else
  memcpy(to, &value, sizeof(T));
#endif
}

// Past the first-level cache: what other blocks of the launch wrote.
GOSSAMER_DEVICE float load_shared_by_blocks(const float* from) {
#ifdef __CUDACC__
  return __ldcg(from);
#else
  return *from;
#endif
}

GOSSAMER_DEVICE void atomic_or(uint32_t* target, uint32_t bits) {
#ifdef __CUDACC__
  atomicOr(target, bits);
#else
  *target |= bits;
#endif
}

GOSSAMER_DEVICE void atomic_max(uint32_t* target, uint32_t value) {
#ifdef __CUDACC__
  atomicMax(target, value);
#else
  *target = *target > value ? *target : value;
#endif
}

// Counts an arrival and returns how many came before. What this block wrote before is visible to whoever counts later,
// if each of its threads called `publish` and a barrier came between.
GOSSAMER_DEVICE uint32_t arrive(uint32_t* counter) {
#ifdef __CUDACC__
  return atomicAdd(counter, 1U);
#else
  return (*counter)++;
#endif
}

GOSSAMER_DEVICE void publish() {
#ifdef __CUDACC__
  __threadfence();
#endif
}

// A warp's copies from global to shared memory that run beside its computing. `commit` closes a group; `wait<N>`
// returns when all but the N youngest groups have landed, visible to the whole warp.
class AsyncCopies {
 public:
  // The first `words` of up to kMost, four a lane at a time; both addresses are aligned to 16 bytes, and up to three
  // words more are copied.
  template <int kMost>
  GOSSAMER_DEVICE void copy(uint32_t* shared, const uint32_t* global, uint32_t words) {
    constexpr uint32_t kStep = 4 * kWarpLanes;
    lanes([&](int lane) {
      const uint32_t first = static_cast<uint32_t>(lane) * 4;
      const uint32_t* from = global + first;
#ifdef __CUDACC__
      auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared + first));
      asm volatile("" : "+r"(to), "+l"(from));  // worked out once, not again for every copy
      GOSSAMER_UNROLL
      for (uint32_t word = 0; word < kMost; word += kStep) {
        if (first + word < words)
          asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(to + 4 * word), "l"(from + word) : "memory");
      }
#else
      for (uint32_t word = 0; word < kMost; word += kStep) {
        if (first + word < words) pending_.push_back({shared + first + word, from + word, group_});
      }
      if (!schedule().late_copies) land(group_);
#endif
    });
  }

  GOSSAMER_DEVICE void commit() {
#ifdef __CUDACC__
    asm volatile("cp.async.commit_group;\n" ::: "memory");
#else
    ++group_;
#endif
  }

  template <int kPending>
  GOSSAMER_DEVICE void wait() {
#ifdef __CUDACC__
    asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
    __syncwarp();
#else
    land(group_ - 1 - kPending);
#endif
  }

#ifndef __CUDACC__
 private:
  struct Copy {
    void* shared;
    const void* global;
    int group;
  };
  void land(int newest) {
    std::vector<Copy> left;
    for (const Copy& copy : pending_) {
      if (copy.group > newest)
        left.push_back(copy);
      else
        memcpy(copy.shared, copy.global, 16);
    }
    pending_.swap(left);
  }
  std::vector<Copy> pending_;
  int group_ = 0;
#endif
};

// --- launching -------------------------------------------------------------------------------------------------------

struct Grid {
  int x, y;
};

// Where a block stands in the grid.
struct Block {
  int x, y;
};

// A kernel is a struct with `Args` (plain data), `Shared` (plain data), kWarps, kBlocks (that should fit a
// multiprocessor) and `run(block, args, shared)`. `launch` returns a cudaError_t; 0 is success.
#ifdef __CUDACC__

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kWarps* kWarpLanes, Kernel::kBlocks)
    entry(const __grid_constant__ typename Kernel::Args args) {
  __shared__ typename Kernel::Shared shared;
  Kernel::run(Block{static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y)}, args, shared);
}

template <class Kernel>
int launch(const Grid& grid, const typename Kernel::Args& args, void* stream) {
  entry<Kernel><<<dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y)), Kernel::kWarps * kWarpLanes, 0,
                  static_cast<cudaStream_t>(stream)>>>(args);
  return static_cast<int>(cudaGetLastError());
}

#else

template <class Kernel>
int launch(const Grid& grid, const typename Kernel::Args& args, void*) {
  static typename Kernel::Shared shared;
  in_order(grid.x * grid.y, [&](int i) {
    memset(static_cast<void*>(&shared), 0xff, sizeof(shared));  // NaN in every type: what is read has to be written
    Kernel::run(Block{i % grid.x, i / grid.x}, args, shared);
  });
  return 0;
}

#endif

}  // namespace gossamer::cuda
