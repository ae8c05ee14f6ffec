#include "ops/linear.h"

#include <algorithm>

#include "common/error.h"
#include "kernels/vectors.h"

namespace gossamer {
namespace {

// Pieces are what threads pick up: small enough to balance, large enough that picking costs nothing.
constexpr std::size_t kPieceBytes = 32 << 10;
constexpr std::size_t kMostPieces = 256;

// Outputs that are added to at once: enough for long reads of what that takes, few enough for threads to end together.
constexpr std::int64_t kRowsTogether = 256;

// Many tokens are taken in turns, whose inputs stay in a core's own cache while all panels of a chunk go by; not fewer,
// since each turn reads these panels again. A multiple of what kernels share an expanded panel among.
// A token counts by its stride, not by its width. They differ where f32 inputs lie in a wider matrix, of which less has
// to fit; but where the stride is a power of two, rows share the sets of the cache as if they were as wide as that. For
// the width to change anything it would have to be some 200 or less: beyond that a turn has the fewest tokens anyway.
constexpr std::int64_t kTurnBytes = 256 << 10;
constexpr std::int64_t kFewestInTurn = 3 * kMaxTokens;
constexpr int kFewestOfTheirOwn = 32;  // fewer go with the turn before

int tokens_in_turn(const Activations& x) {
  const std::int64_t number = x.type == ActivationType::kF32 ? 4 : x.type == ActivationType::kBf16 ? 2 : 1;
  const std::int64_t fitting = kTurnBytes / (number * std::max<std::int64_t>(x.stride, 1)) / kFewestInTurn;
  return static_cast<int>(kFewestInTurn * std::max<std::int64_t>(fitting, 1));
}

ActivationType choose(const PackedWeight& weight, const std::string& wish) {
  const ValueType type = weight.view().type;
  if (wish == "auto") return is_integer(type) ? ActivationType::kA8 : ActivationType::kF32;
  const ActivationType activation = activation_from_name(wish);
  const bool has = activation == ActivationType::kF32 || (activation == ActivationType::kA8 && is_integer(type)) ||
                   (activation == ActivationType::kBf16 && (type == ValueType::kBf16 || type == ValueType::kF16));
  return has ? activation : ActivationType::kF32;
}

using Prepared = ActivationCache::Prepared;

// What is left before addition i of a job.
Countdown& left_of(ActivationCache& cache, const Prepared& job, std::int64_t i) {
  return cache.left[static_cast<std::size_t>(job.addition + i)];
}

// Pieces [first, last) of a job with additions are done.
void count_down(ActivationCache& cache, const Prepared& job, std::int64_t first, std::int64_t last) {
  while (first < last) {
    const std::int64_t i = first / job.together;
    const std::int64_t end = std::min(last, job.end(i));
    left_of(cache, job, i).done(end - first);
    first = end;
  }
}

// Some of the rows, in the forms that were made of all.
Activations rows_of(const Activations& x, int first, int tokens) {
  Activations part = x;
  part.tokens = tokens;
  if (x.type == ActivationType::kF32) {
    part.f32 += first * x.stride;
  } else if (x.type == ActivationType::kBf16) {
    part.bf16 += first * x.stride;
  } else {
    part.codes += first * x.stride;
    part.unit_scales += first * x.unit_stride;
    part.unit_surplus += first * x.unit_stride;
  }
  return part;
}

}  // namespace

Linear::Linear(std::shared_ptr<const PackedWeight> weight, const std::string& activations)
    : Linear(weight, choose(*weight, activations)) {}

Linear::Linear(const std::shared_ptr<const PackedWeight>& weight, ActivationType activation)
    : Linear(weight, find_kernel(weight->view().format, weight->view().type, activation)) {}

Linear::Linear(std::shared_ptr<const PackedWeight> weight, const KernelEntry& kernel)
    : weight_(std::move(weight)), kernel_(&kernel) {
  check_takes(kernel, weight_->view());
  std::size_t total = 0;
  const int streams = weight_->value_streams();
  for (int s = 0; s < streams; ++s) total += weight_->stream_cost(s);
  const std::size_t piece = std::max(kPieceBytes, total / kMostPieces);
  bounds_.push_back(0);
  std::size_t size = 0;
  for (int s = 0; s < streams; ++s) {
    size += weight_->stream_cost(s);
    if (size < piece && s + 1 < streams) continue;
    bounds_.push_back(s + 1);
    size = 0;
  }
}

int Linear::first_row(std::int64_t piece) const {
  return std::min(rows(),
                  bounds_[static_cast<std::size_t>(piece)] * panels_a_stream(weight_->view().type) * kPanelRows);
}

void Linear::run_pieces(std::int64_t begin, std::int64_t end, const Activations& x, float* y,
                        std::int64_t y_stride) const {
  LinearArgs args{};
  args.weight = weight_->view();
  args.begin = bounds_[static_cast<std::size_t>(begin)];
  args.end = bounds_[static_cast<std::size_t>(end)];
  args.y_stride = y_stride;
  const int turn = tokens_in_turn(x);
  for (int first = 0; first < x.tokens; first += args.x.tokens) {
    const int left = x.tokens - first;
    args.x = rows_of(x, first, left < turn + kFewestOfTheirOwn ? left : turn);
    args.y = y + first * y_stride;
    kernel_->run(args);
  }
}

ActivationCache::Form& ActivationCache::form(ActivationType type, int unit) {
  for (const auto& candidate : forms_)
    if (candidate->x.type == type && candidate->x.unit == unit) return *candidate;
  forms_.push_back(std::make_unique<Form>());
  forms_.back()->x.type = type;
  forms_.back()->x.unit = unit;
  return *forms_.back();
}

const Activations& ActivationCache::get(ActivationType type, int unit, Parallel& team) {
  Form& f = form(type, type == ActivationType::kA8 ? unit : 0);
  if (std::find(made_.begin(), made_.end(), &f) != made_.end()) return f.x;
  made_.push_back(&f);
  Activations& x = f.x;
  x.tokens = rows_.tokens;
  const std::int64_t padded = padded_cols(rows_.cols);
  const auto tokens = static_cast<std::size_t>(rows_.tokens);
  const VectorKernels& vectors = vector_kernels();
  if (type == ActivationType::kF32) {
    x.f32 = rows_.data;
    x.stride = rows_.stride;
    return x;
  }
  x.stride = padded;
  if (type == ActivationType::kBf16) {
    f.bf16.resize(tokens * static_cast<std::size_t>(padded) + kSpareBytes);
    x.bf16 = f.bf16.data();
  } else {
    x.unit_stride = padded / x.unit;
    f.codes.resize(tokens * static_cast<std::size_t>(padded) + kSpareBytes);
    f.scales.resize(tokens * static_cast<std::size_t>(x.unit_stride));
    f.surplus.resize(tokens * static_cast<std::size_t>(x.unit_stride));
    x.codes = f.codes.data();
    x.unit_scales = f.scales.data();
    x.unit_surplus = f.surplus.data();
  }
  team.parallel_for(rows_.tokens, 4, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t) {
      const float* row = rows_.data + t * rows_.stride;
      if (type == ActivationType::kBf16)
        vectors.to_bf16(row, rows_.cols, padded, f.bf16.data() + t * padded);
      else
        vectors.quantize(row, rows_.cols, padded, x.unit, f.codes.data() + t * padded,
                         f.scales.data() + t * x.unit_stride, f.surplus.data() + t * x.unit_stride);
    }
  });
  return x;
}

void run_linears(Parallel& team, const std::vector<LinearJob>& jobs, const Rows& x, ActivationCache& cache) {
  cache.reset(x);
  if (x.tokens == 0) return;
  std::vector<Prepared>& prepared = cache.prepared;
  prepared.clear();
  std::int64_t pieces = 0;
  std::int64_t additions = 0;
  std::int64_t plain = 0;  // pieces of jobs without an addition
  for (const LinearJob& job : jobs) {
    require(job.linear->cols() == x.cols, "a weight with ", job.linear->cols(), " inputs cannot take ", x.cols);
    require(job.y_stride >= job.linear->rows(), "output rows hold ", job.y_stride, " floats, fewer than the ",
            job.linear->rows(), " outputs");
    const int tokens = job.tokens < 0 ? x.tokens - job.first : job.tokens;
    require(job.first >= 0 && job.first + tokens <= x.tokens, "rows ", job.first, " to ", job.first + tokens,
            " are asked for, of ", x.tokens);
    if (tokens == 0) continue;
    const Activations& all = cache.get(job.linear->activation(), job.linear->unit(), team);
    const std::int64_t own = job.linear->pieces();
    prepared.push_back({&job, rows_of(all, job.first, tokens), pieces, 0, additions});
    Prepared& mine = prepared.back();
    pieces += own;
    if (job.addition == nullptr) {
      plain += own;
    } else {
      mine.together = std::max<std::int64_t>(1, own * kRowsTogether / job.linear->rows());
      additions += mine.additions();
    }
  }
  Countdown plain_left(plain);
  if (static_cast<std::int64_t>(cache.left.size()) < additions)
    cache.left = std::vector<Countdown>(static_cast<std::size_t>(additions));
  for (const Prepared& mine : prepared)
    for (std::int64_t i = 0; i < mine.additions(); ++i) left_of(cache, mine, i).reset(mine.end(i) - mine.begin(i));
  // Additions come last, when the products that they wait for are there, or nearly.
  team.parallel_for(pieces + additions, 1, [&](std::int64_t begin, std::int64_t end, int) {
    for (const Prepared& mine : prepared) {
      const LinearJob& job = *mine.job;
      const std::int64_t first = std::max<std::int64_t>(begin - mine.first, 0);
      const std::int64_t last = std::min(end - mine.first, job.linear->pieces());
      if (first >= last) continue;
      job.linear->run_pieces(first, last, mine.x, job.y, job.y_stride);
      if (additions == 0) continue;
      if (job.addition == nullptr)
        plain_left.done(last - first);
      else
        count_down(cache, mine, first, last);
    }
    for (const Prepared& mine : prepared) {
      const std::int64_t before = pieces + mine.addition;
      const std::int64_t last = std::min(end - before, mine.additions());
      for (std::int64_t i = std::max<std::int64_t>(begin - before, 0); i < last; ++i) {
        plain_left.wait();
        left_of(cache, mine, i).wait();
        const Linear& linear = *mine.job->linear;
        mine.job->addition->add(linear.first_row(mine.begin(i)), linear.first_row(mine.end(i)));
      }
    }
  });
}

}  // namespace gossamer
