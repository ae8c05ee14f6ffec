#include "ops/attention.h"

#include <algorithm>
#include <cmath>

namespace gossamer {
namespace {

// Positions times heads below which waking the other threads costs more than it saves.
constexpr std::int64_t kSerialWork = 128;

// More positions than there are, few enough that one may be added.
constexpr int kEverything = 1 << 29;

// Floats of results that are kept before they are joined: bounds the scratch of long contexts.
constexpr std::int64_t kMostResults = 1 << 21;

// The first position that a token sees.
int first_seen(const AttentionShape& shape, int position) {
  return shape.window == 0 ? 0 : std::max(0, position + 1 - shape.window);
}

// The position behind the last one that a token sees.
int last_seen(const AttentionShape& shape, const TokenPlace& token) {
  if (shape.causal) return token.position + 1;
  return shape.window == 0 ? token.length : std::min(token.length, token.position + shape.window);
}

// Whether where a token stands changes nothing: it sees everything that its sequence, or the one that it reads, holds.
bool stands_anywhere(const AttentionShape& shape) {
  return !shape.causal && shape.window == 0 && shape.slopes == nullptr && shape.bias == nullptr;
}

// Whether a token can be taken together with the one that lies `count` before it. Sequences that read one memory have
// tables of their own, of the same pages.
bool follows(const AttentionShape& shape, const TokenPlace& first, const TokenPlace& next, int count) {
  if (stands_anywhere(shape)) return next.pages[0] == first.pages[0] && next.length == first.length;
  return next.pages == first.pages && next.position == first.position + count;
}

// Tokens from `first` on, `most` at most, that follow one another in what they read and see the same spans.
int block_at(const AttentionShape& shape, const std::vector<TokenPlace>& tokens, std::size_t first, int most) {
  const int span = first_seen(shape, tokens[first].position) / kAttentionSpan;
  const int last_span = (last_seen(shape, tokens[first]) - 1) / kAttentionSpan;
  int count = 1;
  for (; count < most && first + static_cast<std::size_t>(count) < tokens.size(); ++count) {
    const TokenPlace& next = tokens[first + static_cast<std::size_t>(count)];
    if (!follows(shape, tokens[first], next, count) || (last_seen(shape, next) - 1) / kAttentionSpan != last_span ||
        first_seen(shape, next.position) / kAttentionSpan != span)
      break;
  }
  return count;
}

}  // namespace

void append(const KvKernels& kernels, const AttentionShape& shape, const KvPlace& place, const TokenPlace& token,
            const float* k, const float* v) {
  std::uint8_t* head = token.pages[token.position / kPageTokens] + place.offset;
  const int slot = token.position % kPageTokens;
  for (int h = 0; h < shape.kv_heads; ++h, head += place.head_bytes) {
    kernels.store_k(k + h * shape.head_dim, shape.head_dim, head, slot);
    kernels.store_v(v + h * shape.head_dim, shape.head_dim, place.padded_dim, head + place.v_offset, slot);
  }
}

void Attention::run(Parallel& team, const KvKernels& kernels, const AttentionShape& shape, const KvPlace& place,
                    const std::vector<TokenPlace>& tokens, const float* q, std::int64_t q_stride, float* out,
                    std::int64_t out_stride) {
  const int group = shape.heads / shape.kv_heads;
  const int block = std::max(1, kAttentionRows / group);
  const std::int64_t record = static_cast<std::int64_t>(group) * (place.padded_dim + 2);
  const std::int64_t scratch = static_cast<std::int64_t>(block) * group * (kScoreStride + shape.head_dim + kQueryRoom);
  scratch_.resize(static_cast<std::size_t>(team.size() * scratch));

  const auto keys_of = [&](const Task& task) -> const std::uint8_t* {
    return tokens[task.token].pages[task.begin / kPageTokens] + place.offset + task.kv_head * place.head_bytes;
  };
  const auto attend = [&](std::int64_t first, std::int64_t last, int thread) {
    for (std::int64_t i = first; i < last; ++i) {
      const Task& task = tasks_[static_cast<std::size_t>(i)];
      const TokenPlace& token = tokens[task.token];
      AttentionArgs args{};
      args.q = q + static_cast<std::int64_t>(task.token) * q_stride +
               static_cast<std::int64_t>(task.kv_head) * group * shape.head_dim;
      args.q_stride = q_stride;
      args.tokens = task.tokens;
      args.query_heads = group;
      args.head_dim = shape.head_dim;
      args.padded_dim = place.padded_dim;
      args.pages = token.pages;
      args.offset = place.offset + task.kv_head * place.head_bytes;
      args.begin = task.begin;
      args.end = task.end;
      args.position = token.position;
      args.window = shape.window;
      args.ahead = shape.causal ? 0 : shape.window == 0 ? kEverything : shape.window - 1;
      args.scale = shape.scale;
      args.softcap = shape.softcap;
      args.slopes = shape.slopes == nullptr ? nullptr : shape.slopes + static_cast<std::int64_t>(task.kv_head) * group;
      args.bias = shape.bias == nullptr ? nullptr : shape.bias + std::int64_t{task.kv_head} * group * shape.bias_stride;
      args.bias_stride = shape.bias_stride;
      args.next = i + 1 < last ? keys_of(tasks_[static_cast<std::size_t>(i) + 1]) : nullptr;
      args.scratch = scratch_.data() + thread * scratch;
      args.results = results_.data() + task.result;
      args.result_stride = task.stride;
      kernels.attend(args);
    }
  };
  // Joins the results of each (token, KV head) in the order of their positions.
  const auto join = [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t i = first; i < last; ++i) {
      const Join& mine = joins_[static_cast<std::size_t>(i)];
      const float* results = results_.data() + mine.result;
      for (int h = 0; h < group; ++h) {
        const float* sink = shape.sinks == nullptr ? nullptr : shape.sinks + mine.kv_head * group + h;
        float top = sink == nullptr ? -HUGE_VALF : *sink;
        for (int s = 0; s < mine.spans; ++s) top = std::max(top, results[s * record + h]);
        float* to = out + static_cast<std::int64_t>(mine.token) * out_stride +
                    (static_cast<std::int64_t>(mine.kv_head) * group + h) * shape.head_dim;
        float total = sink == nullptr ? 0.0F : std::exp(*sink - top);
        for (int s = 0; s < mine.spans; ++s) {
          const float* from = results + s * record;
          const float weight = mine.spans == 1 && sink == nullptr ? 1.0F : std::exp(from[h] - top);
          total += weight * from[group + h];
          const float* values = from + 2 * group + static_cast<std::int64_t>(h) * place.padded_dim;
          for (int d = 0; d < shape.head_dim; ++d) to[d] = (s == 0 ? 0.0F : to[d]) + weight * values[d];
        }
        for (int d = 0; d < shape.head_dim; ++d) to[d] /= total;
      }
    }
  };

  for (std::size_t token = 0; token < tokens.size();) {
    tasks_.clear();
    joins_.clear();
    std::int64_t work = 0;
    std::int64_t results = 0;
    do {
      const int count = block_at(shape, tokens, token, block);
      const int length = last_seen(shape, tokens[token + static_cast<std::size_t>(count) - 1]);
      const int start = first_seen(shape, tokens[token].position);
      const int skipped = start / kAttentionSpan;  // spans behind the window
      const int spans = (length + kAttentionSpan - 1) / kAttentionSpan - skipped;
      const std::int64_t stride = record * spans * shape.kv_heads;
      for (int h = 0; h < shape.kv_heads; ++h) {
        const std::int64_t mine = results + record * spans * h;
        for (int s = 0; s < spans; ++s)
          tasks_.push_back({token, count, h, (skipped + s) * kAttentionSpan,
                            std::min(length, (skipped + s + 1) * kAttentionSpan), mine + record * s, stride});
        for (int t = 0; t < count; ++t)
          joins_.push_back({token + static_cast<std::size_t>(t), h, mine + stride * t, spans});
      }
      results += stride * count;
      work += static_cast<std::int64_t>(length - start) * count * shape.kv_heads;
      token += static_cast<std::size_t>(count);
    } while (token < tokens.size() && results < kMostResults);
    const auto count = static_cast<std::int64_t>(tasks_.size());
    const auto joined = static_cast<std::int64_t>(joins_.size());
    results_.resize(static_cast<std::size_t>(results));
    const bool serial = work < kSerialWork;
    team.parallel_for(count, serial ? count : std::max<std::int64_t>(1, count / (16 * team.size())), attend);
    team.parallel_for(joined, std::max<std::int64_t>(64, joined / (4 * team.size())), join);
  }
}

}  // namespace gossamer
