#include "kernels/cuda/attend.h"

namespace gossamer::cuda {
namespace {

template <class T, int kQueries, int kElements>
int launch_for(const AttendArgs& args, void* stream) {
  using Kernel = AttendKernel<T, kQueries, kElements>;
  return launch<Kernel>({args.kv_heads * Kernel::groups(args), args.splits}, args, stream);
}

template <class T, int kElements>
int launch_wide(const AttendArgs& args, void* stream) {
  const int shared_by = args.heads / args.kv_heads;
  if (shared_by == 1) return launch_for<T, 1, kElements>(args, stream);
  if (shared_by == 2 || kElements > 4) return launch_for<T, 2, kElements>(args, stream);  // registers hold no more
  return launch_for<T, 4, 4>(args, stream);
}

template <class T>
int launch_as(const AttendArgs& args, void* stream) {
  return args.width <= 128 ? launch_wide<T, 4>(args, stream) : launch_wide<T, 8>(args, stream);
}

}  // namespace

int launch_attend(const AttendArgs& args, HalfType type, void* stream) {
  return type == HalfType::kF16 ? launch_as<F16>(args, stream) : launch_as<Bf16>(args, stream);
}

}  // namespace gossamer::cuda
