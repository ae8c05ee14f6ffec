// The only layer that knows Python.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common/error.h"
#include "formats/packed_weight.h"

namespace gossamer {

namespace py = pybind11;

// A packed weight. Where its streams are a caller's arrays, the shared pointer keeps those alive too.
struct PyWeight {
  std::shared_ptr<const PackedWeight> weight;
};

using FloatArray = py::array_t<float, py::array::c_style>;

// Anything array-like of real numbers, as float32. Throws InvalidArgument.
inline FloatArray to_floats(const py::object& values, const char* what) {
  const auto array = py::array::ensure(values);
  require(static_cast<bool>(array), what, " must be an array of numbers");
  const char kind = array.dtype().kind();
  require(kind == 'f' || kind == 'i' || kind == 'u' || kind == 'b', what, " must hold real numbers, got dtype ",
          py::str(array.dtype()).cast<std::string>());
  return py::array_t<float, py::array::c_style | py::array::forcecast>::ensure(array);
}

inline bool finalizing() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing() != 0;
#else
  return _Py_IsFinalizing() != 0;
#endif
}

// A thread that asks for the GIL while the interpreter shuts down is ended by force, in the middle of our frames;
// rather let it sleep until the process is gone.
inline void park_if_finalizing() {
  while (finalizing()) std::this_thread::sleep_for(std::chrono::hours(1));
}

// Releases the GIL for its lifetime.
class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  ~WithoutGil() noexcept(false) {
    park_if_finalizing();
    PyEval_RestoreThread(state_);
  }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* state_;
};

// Moves a vector into an array without copying.
template <class T>
py::array_t<T> to_array(std::vector<T>&& values, std::vector<py::ssize_t> shape) {
  auto* owner = new std::vector<T>(std::move(values));
  py::capsule free(owner, [](void* p) { delete static_cast<std::vector<T>*>(p); });
  return py::array_t<T>(std::move(shape), owner->data(), free);
}

// Raises KeyboardInterrupt (or whatever a signal handler raises) out of a native call that runs without the GIL. The
// clock keeps it from taking the GIL more than a few dozen times a second.
class SignalPoll {
 public:
  void operator()() {
    const auto now = std::chrono::steady_clock::now();
    if (now - last_ < std::chrono::milliseconds(30)) return;
    last_ = now;
    park_if_finalizing();
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
void register_timing(py::module_& module);
void register_tensor(py::module_& module);

}  // namespace gossamer
