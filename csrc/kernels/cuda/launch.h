// What runs on a GPU: launchers take plain arguments and a stream (a cudaStream_t), return a cudaError_t (0 is
// success), and neither allocate nor wait, so that a CUDA graph may capture them. Sizes and pointers are checked by the
// caller.
#pragma once

#include <stdint.h>

#include "kernels/cuda/device_weight.h"

namespace gossamer::cuda {

// 16-bit types of activations and outputs.
enum class HalfType : uint8_t { kF16, kBf16 };

constexpr int kLinearWarps = 4;  // panels of a block

// y[t][r] = sum over inputs of x[t][i] W[r][i], plus bias[r].
struct LinearArgs {
  DeviceWeight weight;
  const uint16_t* x;  // [tokens][x_stride]
  int64_t x_stride;
  int32_t tokens;  // 1..kMaxTokens
  uint16_t* y;     // [tokens][y_stride]
  int64_t y_stride;
  const uint16_t* bias;  // [rows] or null
  int32_t splits;        // shares of the inputs, at most ceil(tiles / kSplitTiles)
  float* partials;       // more than one split: [splits][tokens][panels * 16]
  uint32_t* counters;  // more than one split: [ceil(panels / kLinearWarps)], zero before the first call and after each
};

typedef int (*LinearLauncher)(const LinearArgs& args, void* stream);

// One kernel by what it multiplies, named as in the registry of the processor's kernels:
// <format>_linear_<weight>_<activation>__cuda.
struct LinearEntry {
  const char* name;
  Layout layout;
  ValueType type;
  HalfType activation;
  LinearLauncher launch;
};

extern const LinearEntry kBitmapEntries[6];
extern const LinearEntry kNm24Entries[6];

// The same product for up to kMaxFewTokens tokens, from a weight's non-zeros.
struct NonZerosArgs {
  NonZeros weight;
  const uint16_t* x;  // [tokens][x_stride]
  int64_t x_stride;
  int32_t tokens;
  uint16_t* y;  // [tokens][y_stride]
  int64_t y_stride;
  const uint16_t* bias;  // [rows] or null
  int32_t rows_each;     // rows of a warp
  float* partials;       // more than one chunk: [chunks][tokens][rows]
  uint32_t* counters;    // more than one chunk: [ceil(rows / 16)] are enough, zero before the first call and after each
};

struct NonZerosEntry {
  const char* name;
  ValueType type;
  HalfType activation;
  int (*launch)(const NonZerosArgs& args, void* stream);
};

extern const NonZerosEntry kNonZerosEntries[6];

// The whole matrix in 16-bit floats, for calls of many tokens and for tests.
struct ExpandArgs {
  DeviceWeight weight;
  bool scaled;      // false: integer codes as they are
  uint16_t* dense;  // [rows][stride]
  int64_t stride;
};

int launch_expand(const ExpandArgs& args, HalfType type, void* stream);

// Between a decoder's linears (step.h), for up to kMaxStepTokens tokens.
constexpr int kMaxStepTokens = 65535;

struct AddNormArgs {
  uint16_t* states;        // [tokens][width]
  const uint16_t* update;  // [tokens][width] or null
  const float* weight;     // [width]
  uint16_t* out;           // [tokens][width]
  int32_t tokens, width;
  float eps;
};

struct RotateArgs {
  const uint16_t* qkv;    // [tokens][heads + 2 kv_heads][width]
  const float* cos;       // [tokens][half]
  const float* sin;       // [tokens][half]
  const int64_t* places;  // [tokens], below capacity
  uint16_t* queries;      // [heads][tokens][width]
  uint16_t* keys;         // [kv_heads][capacity][width]
  uint16_t* values;       // [kv_heads][capacity][width]
  int32_t tokens, heads, kv_heads, width, half;
  int64_t capacity;
};

struct GateArgs {
  const uint16_t* gate_up;  // [tokens][2][width]
  uint16_t* out;            // [tokens][width]
  int32_t tokens, width;
};

// One token's attention (attend.h).
constexpr int kMaxHeadWidth = 256;

struct AttendArgs {
  const uint16_t* queries;  // [heads][width]
  const uint16_t* keys;     // [kv_heads][capacity][width]
  const uint16_t* values;   // [kv_heads][capacity][width]
  const int64_t* place;     // of the token, below capacity: positions up to it are looked at
  uint16_t* out;            // [heads][width]
  int32_t heads, kv_heads, width;
  int64_t capacity;
  float scale;  // of scores
  int32_t splits;
  float* partials;     // [splits][kv_heads * (heads / kv_heads + 3)][width + 2] are enough
  uint32_t* counters;  // [heads], zero before the first call and after each
};

int launch_attend(const AttendArgs& args, HalfType type, void* stream);

int launch_add_norm(const AddNormArgs& args, HalfType type, void* stream);
int launch_rotate(const RotateArgs& args, HalfType type, void* stream);
int launch_gate(const GateArgs& args, HalfType type, void* stream);

// From the packed format (formats/weight.h) in the GPU's memory to a DeviceWeight there, in three steps: the sizes of
// the records, where they begin, the records. Layout nm24 has fixed sizes and needs the last step alone.
struct RepackArgs {
  WeightView from;    // kBitmap or kNm; kNm24 takes patterns that keep at most two of every four inputs
  DeviceWeight to;    // geometry; the pointers below are where things go
  uint32_t* sizes;    // [panels * tiles] words of each record
  uint32_t* offsets;  // [panels * tiles + 1]
  uint32_t* largest;  // [3], zero before: bytes that a stage of 1, 2 or 4 tiles may need
  uint32_t* records;  // zero before
};

int launch_record_sizes(const RepackArgs& args, void* stream);
int launch_record_offsets(const RepackArgs& args, void* stream);
int launch_records(const RepackArgs& args, void* stream);

}  // namespace gossamer::cuda
