#include "kernels/cuda/step.h"

namespace gossamer::cuda {
namespace {

template <template <class> class Kernel, class Args>
int launch_as(HalfType type, const Grid& grid, const Args& args, void* stream) {
  return type == HalfType::kF16 ? launch<Kernel<F16>>(grid, args, stream) : launch<Kernel<Bf16>>(grid, args, stream);
}

}  // namespace

int launch_add_norm(const AddNormArgs& args, HalfType type, void* stream) {
  return launch_as<AddNormKernel>(type, {1, args.tokens}, args, stream);
}

int launch_rotate(const RotateArgs& args, HalfType type, void* stream) {
  return launch_as<RotateKernel>(type, {args.heads + 2 * args.kv_heads, args.tokens}, args, stream);
}

int launch_gate(const GateArgs& args, HalfType type, void* stream) {
  constexpr int kThreads = GateKernel<F16>::kThreads;
  return launch_as<GateKernel>(type, {(args.width + kThreads - 1) / kThreads, args.tokens}, args, stream);
}

}  // namespace gossamer::cuda
