// The only layer that knows Python.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/error.h"
#include "formats/packed_weight.h"

namespace gossamer {

namespace py = pybind11;

// A packed weight and, where its streams are a caller's arrays, those arrays.
struct PyWeight {
  std::shared_ptr<const PackedWeight> weight;
  py::object owners;
};

using FloatArray = py::array_t<float, py::array::c_style | py::array::forcecast>;

// Moves a vector into an array without copying.
template <class T>
py::array_t<T> to_array(std::vector<T>&& values, std::vector<py::ssize_t> shape) {
  auto* owner = new std::vector<T>(std::move(values));
  py::capsule free(owner, [](void* p) { delete static_cast<std::vector<T>*>(p); });
  return py::array_t<T>(std::move(shape), owner->data(), free);
}

// Raises KeyboardInterrupt (or whatever a signal handler raises) out of a native call that runs without the GIL. The clock
// keeps it from taking the GIL more than a few dozen times a second.
class SignalPoll {
 public:
  void operator()() {
    const auto now = std::chrono::steady_clock::now();
    if (now - last_ < std::chrono::milliseconds(30)) return;
    last_ = now;
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

inline int to_int(py::ssize_t value, const char* what) {
  require(value <= 0x7fffffff, what, " is too large: ", value);
  return static_cast<int>(value);
}

void register_cpu(py::module_& module);
void register_weight(py::module_& module);
void register_decoder(py::module_& module);

}  // namespace gossamer
