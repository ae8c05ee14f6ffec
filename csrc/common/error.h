// Errors of the layers above the kernels: one sentence that names the value and the expectation.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace gossamer {

// Bad input from a caller or a file. The bindings turn it into ValueError.
struct InvalidArgument : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) throw InvalidArgument(concat(parts...));
}

}  // namespace gossamer
