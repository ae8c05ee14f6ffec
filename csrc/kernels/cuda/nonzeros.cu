#include "kernels/cuda/nonzeros.h"

namespace gossamer::cuda {
namespace {

template <ValueType kType, class T>
int launch_for(const NonZerosArgs& args, void* stream) {
  const int rows = NonZerosKernel<kType, T, 1>::kWarps * args.rows_each;
  const Grid grid = {(args.weight.rows + rows - 1) / rows, args.weight.chunks};
  if (args.tokens == 1) return launch<NonZerosKernel<kType, T, 1>>(grid, args, stream);
  if (args.tokens == 2) return launch<NonZerosKernel<kType, T, 2>>(grid, args, stream);
  return launch<NonZerosKernel<kType, T, 4>>(grid, args, stream);
}

}  // namespace

const NonZerosEntry kNonZerosEntries[6] = {
    {"csr_linear_f16_f16__cuda", ValueType::kF16, HalfType::kF16, launch_for<ValueType::kF16, F16>},
    {"csr_linear_bf16_bf16__cuda", ValueType::kBf16, HalfType::kBf16, launch_for<ValueType::kBf16, Bf16>},
    {"csr_linear_int8_f16__cuda", ValueType::kInt8, HalfType::kF16, launch_for<ValueType::kInt8, F16>},
    {"csr_linear_int8_bf16__cuda", ValueType::kInt8, HalfType::kBf16, launch_for<ValueType::kInt8, Bf16>},
    {"csr_linear_int4_f16__cuda", ValueType::kInt4, HalfType::kF16, launch_for<ValueType::kInt4, F16>},
    {"csr_linear_int4_bf16__cuda", ValueType::kInt4, HalfType::kBf16, launch_for<ValueType::kInt4, Bf16>},
};

}  // namespace gossamer::cuda
