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

// Scratch of a thread, in floats.
constexpr int kScores = kAttentionHeads * kAttentionSpan;

// Tasks that run before their parts are joined: bounds the scratch of long contexts.
constexpr std::size_t kMostTasks = 2048;

}  // namespace

void Attention::run(Parallel& team, const VectorKernels& kernels, const AttentionShape& shape,
                    const std::vector<TokenPlace>& tokens, std::int64_t layer_offset, std::int64_t head_bytes,
                    const float* q, std::int64_t q_stride, float* out, std::int64_t out_stride) {
  const int group = shape.heads / shape.kv_heads;
  const std::int64_t record = static_cast<std::int64_t>(group) * (shape.padded_dim + 2);
  const float scale = 1.0F / std::sqrt(static_cast<float>(shape.head_dim));
  scores_.resize(static_cast<std::size_t>(team.size()) * kScores);

  std::vector<Task> tasks;           // those of one (token, KV head) side by side, positions rising
  std::vector<std::int64_t> firsts;  // the first task of each (token, KV head), and behind them the number of tasks
  const auto attend = [&](std::int64_t first, std::int64_t last, int thread) {
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
      args.scores = scores_.data() + static_cast<std::int64_t>(thread) * kScores;
      args.maximum = mine;
      args.sum = mine + group;
      args.out = mine + 2 * group;
      kernels.attend(args);
    }
  };
  // Joins the parts of each (token, KV head) in the order of their positions.
  const auto join = [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t i = first; i < last; ++i) {
      const std::int64_t begin = firsts[static_cast<std::size_t>(i)];
      const std::int64_t end = firsts[static_cast<std::size_t>(i) + 1];
      const Task& task = tasks[static_cast<std::size_t>(begin)];
      for (int h = 0; h < group; ++h) {
        float top = -HUGE_VALF;
        for (std::int64_t j = begin; j < end; ++j) top = std::max(top, partial_.data()[j * record + h]);
        float* to =
            out + task.token * out_stride + (static_cast<std::int64_t>(task.kv_head) * group + h) * shape.head_dim;
        float total = 0;
        for (std::int64_t j = begin; j < end; ++j) {
          const float* from = partial_.data() + j * record;
          const float weight = end == begin + 1 ? 1.0F : std::exp(from[h] - top);
          total += weight * from[group + h];
          const float* values = from + 2 * group + static_cast<std::int64_t>(h) * shape.padded_dim;
          for (int d = 0; d < shape.head_dim; ++d) to[d] = (j == begin ? 0.0F : to[d]) + weight * values[d];
        }
        for (int d = 0; d < shape.head_dim; ++d) to[d] /= total;
      }
    }
  };

  for (std::size_t token = 0; token < tokens.size();) {
    tasks.clear();
    firsts.clear();
    std::int64_t work = 0;
    do {
      const int length = tokens[token].position + 1;
      work += static_cast<std::int64_t>(length) * shape.kv_heads;
      for (int h = 0; h < shape.kv_heads; ++h) {
        firsts.push_back(static_cast<std::int64_t>(tasks.size()));
        for (int begin = 0; begin < length; begin += kAttentionSpan)
          tasks.push_back({static_cast<int>(token), h, begin, std::min(length, begin + kAttentionSpan)});
      }
    } while (++token < tokens.size() && tasks.size() < kMostTasks);
    firsts.push_back(static_cast<std::int64_t>(tasks.size()));
    const auto count = static_cast<std::int64_t>(tasks.size());
    const auto joins = static_cast<std::int64_t>(firsts.size()) - 1;
    partial_.resize(tasks.size() * static_cast<std::size_t>(record));
    const bool serial = work < kSerialWork;
    team.parallel_for(count, serial ? count : std::max<std::int64_t>(1, count / (16 * team.size())), attend);
    team.parallel_for(joins, std::max<std::int64_t>(64, joins / (4 * team.size())), join);
  }
}

}  // namespace gossamer
