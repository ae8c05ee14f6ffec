// Products on memory that Python knows the address of, such as torch's tensors.
#include <optional>
#include <tuple>

#include "bindings/bindings.h"
#include "common/host_threads.h"
#include "ops/tensor_linear.h"

namespace gossamer {
namespace {

// Never destroyed: a daemon thread may still be inside a call while the process ends.
HostThreads& host_threads() {
  static auto* threads = new HostThreads;
  return *threads;
}

TensorScratch& scratch() {
  static thread_local TensorScratch mine;
  return mine;
}

FloatType to_float_type(int code) {
  require(code >= 0 && code <= 2, "float types are 0 (f32), 1 (bf16) and 2 (f16), got ", code);
  return static_cast<FloatType>(code);
}

template <class T>
T* to_pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// A packed weight with its kernels.
class PyLinear {
 public:
  PyLinear(const PyWeight& weight, const std::string& activations) : linear_(weight.weight, activations) {}

  void multiply(std::uintptr_t x, std::int64_t tokens, std::int64_t stride, std::uintptr_t y, int type,
                std::uintptr_t bias, int bias_type, int threads) const {
    const TensorLinearArgs args{tokens,
                                {to_pointer<const void>(x), to_float_type(type), stride},
                                to_pointer<void>(y),
                                to_pointer<const void>(bias),
                                to_float_type(bias_type)};
    const WithoutGil released;
    host_threads().run(linear_.pieces() == 1 ? 1 : threads,
                       [&](Parallel& parallel) { scratch().run(parallel, linear_, args); });
  }

  void expand(int begin, int end, std::uintptr_t out, std::int64_t stride, int threads) const {
    const WeightView& view = linear_.weight().view();
    require(begin >= 0 && begin <= end && end <= view.panels, "panels must be from 0 to ", view.panels, ", got ", begin,
            " to ", end);
    const WithoutGil released;
    host_threads().run(threads, [&](Parallel& parallel) {
      expand_panels(parallel, view, begin, end, to_pointer<float>(out), stride);
    });
  }

  std::string kernel() const { return linear_.kernel_name(); }

 private:
  Linear linear_;
};

}  // namespace

void register_tensor(py::module_& module) {
  using py::arg;
  py::class_<PyLinear>(module, "Linear", "A packed weight with the kernel chosen for it.")
      .def(py::init<const PyWeight&, const std::string&>(), arg("weight"), arg("activations") = "auto")
      .def("multiply", &PyLinear::multiply, arg("x"), arg("tokens"), arg("stride"), arg("y"), arg("type"), arg("bias"),
           arg("bias_type"), arg("threads"))
      .def("expand", &PyLinear::expand, arg("begin"), arg("end"), arg("out"), arg("stride"), arg("threads"))
      .def_property_readonly("kernel", &PyLinear::kernel);
  module.def(
      "use_open_mp", [](const std::string& library) { return host_threads().use_open_mp(library); }, arg("library"));
}

}  // namespace gossamer
