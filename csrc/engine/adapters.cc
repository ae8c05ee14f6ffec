#include "engine/adapters.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/error.h"

namespace gossamer {

int Adapters::next() const {
  int number = kOwn + 1;
  while (bytes_.count(number) != 0) ++number;
  return number;
}

std::int64_t Adapters::bytes(int adapter) const {
  const auto found = bytes_.find(adapter);
  require(found != bytes_.end(), "there is no adapter ", adapter);
  return found->second;
}

void Adapters::remove(int adapter) {
  (void)bytes(adapter);
  for (const auto& [sequence, mix] : mixes_)
    for (const Choice& choice : mix)
      require(choice.adapter != adapter, "adapter ", adapter, " is in use by sequence ", sequence);
  bytes_.erase(adapter);
}

Mix Adapters::checked(Mix mix) const {
  std::sort(mix.begin(), mix.end(), [](const Choice& a, const Choice& b) { return a.adapter < b.adapter; });
  for (std::size_t i = 0; i < mix.size(); ++i) {
    (void)bytes(mix[i].adapter);
    require(i == 0 || mix[i].adapter != mix[i - 1].adapter, "adapter ", mix[i].adapter, " is chosen twice");
    require(std::isfinite(mix[i].weight), "the weight of adapter ", mix[i].adapter, " must be finite, got ",
            mix[i].weight);
  }
  std::erase_if(mix, [](const Choice& choice) { return choice.weight == 0; });
  return mix;
}

void Adapters::choose(std::int64_t sequence, Mix mix) {
  require(sequence >= 0, "sequence ids must not be negative, got ", sequence);
  mix = checked(std::move(mix));
  if (mix.empty())
    forget(sequence);
  else
    mixes_[sequence] = std::move(mix);
}

const Mix& Adapters::of(std::int64_t sequence) const {
  static const Mix none;
  const auto found = mixes_.find(sequence);
  return found == mixes_.end() ? none : found->second;
}

void Adapters::fork(std::int64_t from, std::int64_t to) { choose(to, of(from)); }

}  // namespace gossamer
