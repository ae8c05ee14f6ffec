#include "ops/timing.h"

#include <optional>
#include <variant>

#include "bindings/bindings.h"

namespace gossamer {
namespace {

py::array read_bandwidth(std::int64_t bytes, int threads, bool prefetch, int repeats) {
  std::vector<double> seconds;
  {
    const WithoutGil released;
    seconds = time_reads(bytes, threads, prefetch, repeats, SignalPoll());
  }
  return to_array(std::move(seconds), {repeats});
}

WeightGroup to_group(const py::handle& entry) {
  if (py::isinstance<PyWeight>(entry)) return {entry.cast<const PyWeight&>().weight};
  require(py::isinstance<py::sequence>(entry), "weights must be Weight objects or sequences of them");
  WeightGroup group;
  for (const py::handle weight : entry.cast<py::sequence>()) {
    require(py::isinstance<PyWeight>(weight), "weights must be Weight objects or sequences of them");
    group.push_back(weight.cast<const PyWeight&>().weight);
  }
  return group;
}

py::tuple time_linears_of(const py::sequence& weights, const std::variant<int, py::object>& x,
                          const std::string& activations, int threads, int repeats,
                          const std::optional<std::string>& kernel) {
  LinearTiming timing;
  for (const py::handle entry : weights) timing.groups.push_back(to_group(entry));
  FloatArray inputs;
  if (const int* batch = std::get_if<int>(&x)) {
    timing.batch = *batch;
  } else {
    inputs = to_floats(std::get<py::object>(x), "x");
    require(inputs.ndim() == 2, "x must be a matrix [batch, cols] or a batch size, got ", inputs.ndim(), " dimensions");
    timing.batch = to_int(inputs.shape(0), "batch");
    timing.cols = to_int(inputs.shape(1), "cols");
    timing.x = inputs.data();
  }
  timing.activations = activations;
  timing.kernel = kernel.value_or("");
  timing.threads = threads;
  timing.repeats = repeats;
  LinearTimes times;
  {
    const WithoutGil released;
    times = time_linears(timing, SignalPoll());
  }
  const auto rows = static_cast<py::ssize_t>(times.y.size()) / timing.batch;
  return py::make_tuple(to_array(std::move(times.seconds), {repeats}),
                        to_array(std::move(times.y), {timing.batch, rows}));
}

}  // namespace

void register_timing(py::module_& module) {
  using py::arg;
  module.def("read_bandwidth", &read_bandwidth, arg("size"), arg("threads") = 0, arg("prefetch") = false,
             arg("repeats") = 1);
  module.def("time_linears", &time_linears_of, arg("weights"), arg("x") = 1, arg("activations") = "auto",
             arg("threads") = 0, arg("repeats") = 1, arg("kernel") = py::none());
}

}  // namespace gossamer
