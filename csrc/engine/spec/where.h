// What a description is checked with, and the words that it may say.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/error.h"

namespace gossamer::spec {

constexpr int kLargest = 1 << 24;  // so that sizes multiply without overflow

// The words of an enumeration, in its order.
template <class Enum>
struct Words;

// What is checked, by the name that errors give it.
struct Where {
  std::string path;

  Where operator/(const std::string& field) const { return {path + "." + field}; }
  Where operator[](std::size_t i) const { return {path + "[" + std::to_string(i) + "]"}; }

  template <class... Parts>
  void must(bool fair, const Parts&... parts) const {
    require(fair, path, parts...);
  }
  void size(const char* field, int value) const {
    must(value > 0 && value <= kLargest, ".", field, " must be between 1 and ", kLargest, ", got ", value);
  }
  void size(const char* field, const std::optional<int>& value) const {
    if (value) size(field, *value);
  }
  void above_zero(const char* field, float value) const {
    must(value > 0 && std::isfinite(value), ".", field, " must be finite and above 0, got ", value);
  }
  void above_zero(const char* field, const std::optional<float>& value) const {
    if (value) above_zero(field, *value);
  }
};

inline bool has(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace gossamer::spec
