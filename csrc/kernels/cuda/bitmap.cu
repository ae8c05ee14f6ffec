#include "kernels/cuda/bitmap.h"

#include "kernels/cuda/linear.h"

namespace gossamer::cuda {

const LinearEntry kBitmapEntries[6] = {
    {"bitmap_linear_f16_f16__cuda", Layout::kBitmap, ValueType::kF16, HalfType::kF16,
     launch_linear<BitmapTiles<ValueType::kF16, F16>>},
    {"bitmap_linear_bf16_bf16__cuda", Layout::kBitmap, ValueType::kBf16, HalfType::kBf16,
     launch_linear<BitmapTiles<ValueType::kBf16, Bf16>>},
    {"bitmap_linear_int8_f16__cuda", Layout::kBitmap, ValueType::kInt8, HalfType::kF16,
     launch_linear<BitmapTiles<ValueType::kInt8, F16>>},
    {"bitmap_linear_int8_bf16__cuda", Layout::kBitmap, ValueType::kInt8, HalfType::kBf16,
     launch_linear<BitmapTiles<ValueType::kInt8, Bf16>>},
    {"bitmap_linear_int4_f16__cuda", Layout::kBitmap, ValueType::kInt4, HalfType::kF16,
     launch_linear<BitmapTiles<ValueType::kInt4, F16>>},
    {"bitmap_linear_int4_bf16__cuda", Layout::kBitmap, ValueType::kInt4, HalfType::kBf16,
     launch_linear<BitmapTiles<ValueType::kInt4, Bf16>>},
};

}  // namespace gossamer::cuda
