#include "kernels/cuda/repack.h"

#include "kernels/cuda/expand.h"

namespace gossamer::cuda {
namespace {

int blocks_of(int64_t work, int warps) { return static_cast<int>((work + warps - 1) / warps); }

int64_t tiles_of(const DeviceWeight& weight) { return static_cast<int64_t>(weight.panels) * weight.tiles; }

template <template <ValueType, class> class Tiles, class T>
int expand(const ExpandArgs& args, void* stream) {
  const Grid grid = {blocks_of(tiles_of(args.weight), 4), 1};
  switch (args.weight.type) {
    case ValueType::kInt8:
      return launch<ExpandKernel<Tiles<ValueType::kInt8, T>>>(grid, args, stream);
    case ValueType::kInt4:
      return launch<ExpandKernel<Tiles<ValueType::kInt4, T>>>(grid, args, stream);
    default:  // 16 bits are 16 bits
      return launch<ExpandKernel<Tiles<ValueType::kF16, T>>>(grid, args, stream);
  }
}

}  // namespace

int launch_expand(const ExpandArgs& args, HalfType type, void* stream) {
  if (args.weight.layout == Layout::kBitmap)
    return type == HalfType::kF16 ? expand<BitmapTiles, F16>(args, stream) : expand<BitmapTiles, Bf16>(args, stream);
  return type == HalfType::kF16 ? expand<Nm24Tiles, F16>(args, stream) : expand<Nm24Tiles, Bf16>(args, stream);
}

int launch_record_sizes(const RepackArgs& args, void* stream) {
  return launch<RecordSizes>({blocks_of(tiles_of(args.to), RecordSizes::kWarps), 1}, args, stream);
}

int launch_record_offsets(const RepackArgs& args, void* stream) { return launch<RecordOffsets>({1, 1}, args, stream); }

int launch_records(const RepackArgs& args, void* stream) {
  if (args.to.layout == Layout::kNm24)
    return launch<Nm24Records>({blocks_of(tiles_of(args.to), Nm24Records::kWarps), 1}, args, stream);
  return launch<BitmapRecords>({blocks_of(args.to.panels, BitmapRecords::kWarps), 1}, args, stream);
}

}  // namespace gossamer::cuda
