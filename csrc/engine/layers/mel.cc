#include "engine/layers/mel.h"

#include "kernels/vectors.h"
#include "ops/tokens.h"

namespace gossamer {
namespace {

constexpr int kReach = 3;  // frames that an output reads: one before its own, and one behind it

// What an output reads, by channel, of rows with as many channels; beyond both ends these are zero.
template <class RowOf>
void unfold(const RowOf& row_of, int at, int count, int channels, float* out) {
  for (int k = 0; k < kReach; ++k) {
    const int from = at + k - 1;
    const float* row = from < 0 || from >= count ? nullptr : row_of(from);
    for (int c = 0; c < channels; ++c) out[c * kReach + k] = row == nullptr ? 0.0F : row[c];
  }
}

}  // namespace

MelLayer::MelLayer(const spec::Mel& spec, Build& build)
    : vectors_(build.vectors),
      gelu_(*named(build.vectors.activations, "gelu")),
      ones_(static_cast<std::size_t>(build.hidden), 1.0F),
      bins_(spec.bins),
      first_(build.weights.take("conv1", build.hidden, kReach * spec.bins)),
      second_(build.weights.take("conv2", build.hidden, kReach * build.hidden)),
      first_bias_(build.weights.take_vector("conv1.bias", build.hidden)),
      second_bias_(build.weights.take_vector("conv2.bias", build.hidden)),
      unfolded_(build.workspace.matrix("mel.unfolded", kReach * spec.bins, 2)),
      inner_(build.workspace.matrix("mel.inner", build.hidden, 2)),
      wide_(build.workspace.matrix("mel.wide", kReach * build.hidden)) {}

void MelLayer::run(Step& step, Matrix& out) const {
  int frames = 0;
  for (const Frames& input : step.chunk.frames) {
    for_tokens(step.team, input.count, [&](std::int64_t t) {
      unfold([&](int at) { return input.rows + std::int64_t{at} * bins_; }, static_cast<int>(t), input.count, bins_,
             unfolded_.row(frames + t));
    });
    frames += input.count;
  }
  run_linears(step.team, {{first_.get(), inner_.data(), inner_.stride()}}, unfolded_.rows(frames), step.inputs);
  for_tokens(step.team, frames, [&](std::int64_t t) {
    vectors_.add(inner_.row(t), first_bias_.data(), inner_.cols());
    gelu_.run(inner_.row(t), ones_.data(), inner_.cols());
  });
  int first = 0;
  int row = 0;
  for (const Frames& input : step.chunk.frames) {
    const int rows = (input.count + 1) / 2;
    for_tokens(step.team, rows, [&](std::int64_t t) {
      unfold([&](int at) { return inner_.row(first + at); }, 2 * static_cast<int>(t), input.count, inner_.cols(),
             wide_.row(row + t));
    });
    first += input.count;
    row += rows;
  }
  run_linears(step.team, {{second_.get(), out.data(), out.stride()}}, wide_.rows(row), step.inputs);
  for_tokens(step.team, row, [&](std::int64_t t) {
    vectors_.add(out.row(t), second_bias_.data(), out.cols());
    gelu_.run(out.row(t), ones_.data(), out.cols());
  });
}

}  // namespace gossamer
