// What happens to every token by itself: norms, sums, activations, rotation.
#pragma once

#include <cstdint>

#include "common/parallel.h"

namespace gossamer {

// Tokens that one thread takes at least: waking another for fewer costs more than it saves.
constexpr std::int64_t kTokenGrain = 4;

// Calls f(token) for each of `tokens` tokens.
template <class F>
void for_tokens(Parallel& team, std::int64_t tokens, const F& f) {
  const auto run = [&f](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) f(t);
  };
  if (tokens <= kTokenGrain)
    run(0, tokens);
  else
    team.parallel_for(tokens, kTokenGrain, [&run](std::int64_t begin, std::int64_t end, int) { run(begin, end); });
}

}  // namespace gossamer
