#include "ops/attention.h"

#include <algorithm>
#include <cmath>

namespace gossamer {
namespace {

struct Task {
  int token;
  int kv_head;
  int begin;
  int end;
};

// Positions times heads below which waking the other threads costs more than it saves.
constexpr std::int64_t kSerialWork = 512;

}  // namespace

void Attention::run(ThreadTeam& team, const VectorKernels& kernels, const AttentionShape& shape, const std::vector<TokenPlace>& tokens,
                    std::int64_t layer_offset, std::int64_t head_bytes, const float* q, std::int64_t q_stride, float* out,
                    std::int64_t out_stride) {
  const int group = shape.heads / shape.kv_heads;
  std::vector<Task> tasks;
  std::int64_t work = 0;
  for (int t = 0; t < static_cast<int>(tokens.size()); ++t) {
    const int length = tokens[static_cast<std::size_t>(t)].position + 1;
    work += static_cast<std::int64_t>(length) * shape.kv_heads;
    for (int h = 0; h < shape.kv_heads; ++h)
      for (int begin = 0; begin < length; begin += kAttentionSpan) tasks.push_back({t, h, begin, std::min(length, begin + kAttentionSpan)});
  }
  const std::int64_t record = static_cast<std::int64_t>(group) * (shape.padded_dim + 2);
  scores_.resize(static_cast<std::size_t>(team.size()) * kAttentionSpan);
  partial_.resize(tasks.size() * static_cast<std::size_t>(record));
  const float scale = 1.0F / std::sqrt(static_cast<float>(shape.head_dim));
  const auto count = static_cast<std::int64_t>(tasks.size());
  const std::int64_t grain = work < kSerialWork ? count : std::max<std::int64_t>(1, count / (16 * team.size()));
  team.parallel_for(count, grain, [&](std::int64_t first, std::int64_t last, int thread) {
    for (std::int64_t i = first; i < last; ++i) {
      const Task& task = tasks[static_cast<std::size_t>(i)];
      float* mine = partial_.data() + i * record;
      AttentionArgs args{};
      args.q = q + task.token * q_stride + static_cast<std::int64_t>(task.kv_head) * group * shape.head_dim;
      args.query_heads = group;
      args.head_dim = shape.head_dim;
      args.padded_dim = shape.padded_dim;
      args.pages = tokens[static_cast<std::size_t>(task.token)].pages;
      args.offset = layer_offset + task.kv_head * head_bytes;
      args.begin = task.begin;
      args.end = task.end;
      args.scale = scale;
      args.scores = scores_.data() + static_cast<std::int64_t>(thread) * kAttentionSpan;
      args.maximum = mine;
      args.sum = mine + group;
      args.out = mine + 2 * group;
      kernels.attend(args);
    }
  });

  // Tasks of one (token, KV head) lie side by side, positions rising; they are joined in that order.
  for (std::int64_t i = 0; i < count;) {
    const Task& task = tasks[static_cast<std::size_t>(i)];
    std::int64_t end = i + 1;
    while (end < count && tasks[static_cast<std::size_t>(end)].token == task.token && tasks[static_cast<std::size_t>(end)].kv_head == task.kv_head) ++end;
    for (int h = 0; h < group; ++h) {
      float top = -HUGE_VALF;
      for (std::int64_t j = i; j < end; ++j) top = std::max(top, partial_.data()[j * record + h]);
      float* to = out + task.token * out_stride + (static_cast<std::int64_t>(task.kv_head) * group + h) * shape.head_dim;
      float total = 0;
      for (std::int64_t j = i; j < end; ++j) {
        const float* from = partial_.data() + j * record;
        const float weight = end == i + 1 ? 1.0F : std::exp(from[h] - top);
        total += weight * from[group + h];
        const float* values = from + 2 * group + static_cast<std::int64_t>(h) * shape.padded_dim;
        for (int d = 0; d < shape.head_dim; ++d) to[d] = (j == i ? 0.0F : to[d]) + weight * values[d];
      }
      for (int d = 0; d < shape.head_dim; ++d) to[d] /= total;
    }
    i = end;
  }
}

}  // namespace gossamer
