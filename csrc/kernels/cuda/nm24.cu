#include "kernels/cuda/nm24.h"

#include "kernels/cuda/linear.h"

namespace gossamer::cuda {

const LinearEntry kNm24Entries[6] = {
    {"nm_linear_f16_f16__cuda", Layout::kNm24, ValueType::kF16, HalfType::kF16,
     launch_linear<Nm24Tiles<ValueType::kF16, F16>>},
    {"nm_linear_bf16_bf16__cuda", Layout::kNm24, ValueType::kBf16, HalfType::kBf16,
     launch_linear<Nm24Tiles<ValueType::kBf16, Bf16>>},
    {"nm_linear_int8_f16__cuda", Layout::kNm24, ValueType::kInt8, HalfType::kF16,
     launch_linear<Nm24Tiles<ValueType::kInt8, F16>>},
    {"nm_linear_int8_bf16__cuda", Layout::kNm24, ValueType::kInt8, HalfType::kBf16,
     launch_linear<Nm24Tiles<ValueType::kInt8, Bf16>>},
    {"nm_linear_int4_f16__cuda", Layout::kNm24, ValueType::kInt4, HalfType::kF16,
     launch_linear<Nm24Tiles<ValueType::kInt4, F16>>},
    {"nm_linear_int4_bf16__cuda", Layout::kNm24, ValueType::kInt4, HalfType::kBf16,
     launch_linear<Nm24Tiles<ValueType::kInt4, Bf16>>},
};

}  // namespace gossamer::cuda
