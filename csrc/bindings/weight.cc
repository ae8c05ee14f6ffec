#include <algorithm>
#include <limits>
#include <optional>

#include "bindings/bindings.h"
#include "common/thread_team.h"
#include "kernels/vectors.h"
#include "ops/linear.h"

namespace gossamer {
namespace {

using Pattern = std::optional<std::pair<int, int>>;

std::pair<int, int> split(Format format, const Pattern& pattern) {
  require((format == Format::kNm) == pattern.has_value(),
          format == Format::kNm ? "format nm needs a pattern (N, M)" : "only format nm takes a pattern");
  return pattern.value_or(std::pair<int, int>{0, 0});
}

// A stream's element type as numpy has it.
py::dtype stream_dtype(const std::string& name) {
  if (name == "scales") return py::dtype("float16");
  if (name == "masks" || name == "offsets" || name == "slots" || name == "steps") return py::dtype::of<std::uint64_t>();
  if (name == "lanes") return py::dtype::of<std::uint16_t>();
  return py::dtype::of<std::uint8_t>();
}

// A matrix [rows, cols] of floats.
struct Values {
  FloatArray array;
  int rows, cols;
  const float* data;

  explicit Values(const py::object& values) : array(to_floats(values, "values")) {
    require(array.ndim() == 2, "values must be a matrix [rows, cols], got ", array.ndim(), " dimensions");
    rows = to_int(array.shape(0), "rows");
    cols = to_int(array.shape(1), "cols");
    data = array.data();
  }
};

PyWeight pack_array(const py::object& array, const std::string& format_name, const std::string& type, int group,
                    const Pattern& pattern) {
  const Values values(array);
  const Format format = format_from_name(format_name.c_str());
  const auto [n, m] = split(format, pattern);
  const WithoutGil released;
  return {pack(quantize(values.data, values.rows, values.cols, type_from_name(type.c_str()), group), format, n, m)};
}

py::array scales_array(const py::object& array, const std::string& type, int group) {
  const Values values(array);
  std::vector<std::uint16_t> scales;
  {
    const WithoutGil released;
    scales = choose_scales(values.data, values.rows, values.cols, type_from_name(type.c_str()), group);
  }
  const auto groups = static_cast<py::ssize_t>(scales.size()) / values.rows;
  return to_array(std::move(scales), {values.rows, groups}).attr("view")("float16");
}

py::tuple round_to_codes(const py::object& array, const std::string& type, int group) {
  const Values values(array);
  py::array codes(py::dtype::of<std::int8_t>(), std::vector<py::ssize_t>{values.rows, values.cols});
  auto* out = static_cast<std::int8_t*>(codes.mutable_data());
  std::vector<std::uint16_t> scales;
  {
    const WithoutGil released;
    scales = round_codes(values.data, values.rows, values.cols, type_from_name(type.c_str()), group, out);
  }
  const auto groups = static_cast<py::ssize_t>(scales.size()) / values.rows;
  return py::make_tuple(codes, to_array(std::move(scales), {values.rows, groups}).attr("view")("float16"));
}

PyWeight pack_codes(const py::array& code_array, const py::array& scale_array, const std::string& format_name,
                    const std::string& type_text, int group, const Pattern& pattern) {
  const Format format = format_from_name(format_name.c_str());
  const ValueType type = type_from_name(type_text.c_str());
  const auto [n, m] = split(format, pattern);
  require(is_integer(type), "codes are for int8 and int4, got type ", type_text);
  require(code_array.dtype().equal(py::dtype::of<std::int8_t>()), "codes must be int8");
  require(code_array.ndim() == 2, "codes must be a matrix [rows, cols], got ", code_array.ndim(), " dimensions");
  require(scale_array.dtype().equal(py::dtype("float16")), "scales must be float16");
  StoredMatrix matrix(type, to_int(code_array.shape(0), "rows"), to_int(code_array.shape(1), "cols"), group);
  const int used = matrix.group == 0 ? 1 : (matrix.cols + matrix.group - 1) / matrix.group;
  require(scale_array.ndim() == 2 && scale_array.shape(0) == matrix.rows && scale_array.shape(1) == used,
          "scales must be [", matrix.rows, ", ", used, "]");
  const auto dense_codes = py::array::ensure(code_array, py::array::c_style);
  const auto dense_scales = py::array::ensure(scale_array, py::array::c_style);
  const auto* codes = static_cast<const std::int8_t*>(dense_codes.data());
  const auto* scales = static_cast<const std::uint16_t*>(dense_scales.data());
  const WithoutGil released;
  const std::uint32_t mask = type == ValueType::kInt8 ? 0xffU : 0xfU;
  if (type == ValueType::kInt4) {
    const auto* wide = std::find_if(codes, codes + matrix.raw.size(), [](int code) { return code < -8 || code > 7; });
    if (wide != codes + matrix.raw.size())
      throw InvalidArgument(concat("code ", static_cast<int>(*wide), " does not fit int4"));
  }
  for (std::size_t i = 0; i < matrix.raw.size(); ++i) matrix.raw[i] = static_cast<std::uint32_t>(codes[i]) & mask;
  for (int r = 0; r < matrix.rows; ++r)
    std::copy_n(scales + static_cast<std::int64_t>(r) * used, used,
                matrix.scales.data() + static_cast<std::int64_t>(r) * matrix.groups);
  return {pack(matrix, format, n, m)};
}

PyWeight from_streams(const std::string& format_name, const std::string& type, int rows, int cols, int group,
                      const Pattern& pattern, const py::dict& streams) {
  const Format format = format_from_name(format_name.c_str());
  const auto [n, m] = split(format, pattern);
  auto packed = std::make_unique<PackedWeight>(format, type_from_name(type.c_str()), rows, cols, group, n, m);
  py::list owners;
  for (const auto& [key, value] : streams) {
    const auto name = key.cast<std::string>();
    require(py::isinstance<py::array>(value), "stream '", name, "' must be an array");
    const auto array = py::reinterpret_borrow<py::array>(value);
    require(array.ndim() == 1 && (array.flags() & py::array::c_style) != 0, "stream '", name,
            "' must be a contiguous vector");
    require(array.dtype().equal(stream_dtype(name)), "stream '", name, "' must have elements of type ",
            py::str(stream_dtype(name)).cast<std::string>(), ", got ", py::str(array.dtype()).cast<std::string>());
    packed->set_stream(name,
                       {array.data(), static_cast<std::size_t>(array.nbytes()), static_cast<int>(array.itemsize())});
    owners.append(array);
  }
  {
    const WithoutGil released;
    packed->finish();
  }
  PyObject* held = owners.release().ptr();
  return {std::shared_ptr<const PackedWeight>(packed.release(), [held](const PackedWeight* weight) {
    delete weight;
    if (finalizing()) return;  // the process is ending, and its memory with it
    const py::gil_scoped_acquire gil;
    Py_DECREF(held);
  })};
}

py::dict stream_arrays(const py::object& self) {
  const auto& weight = self.cast<const PyWeight&>();
  py::dict out;
  for (const auto& [name, stream] : weight.weight->streams()) {
    py::array array(stream_dtype(name), {static_cast<py::ssize_t>(stream.bytes) / stream.element}, {stream.element},
                    stream.data, self);
    array.attr("setflags")(py::arg("write") = false);
    out[py::str(name)] = array;
  }
  return out;
}

py::array unpack_array(const PyWeight& self) {
  const WeightView& view = self.weight->view();
  std::vector<float> values(static_cast<std::size_t>(view.rows) * static_cast<std::size_t>(view.cols));
  {
    const WithoutGil released;
    dequantize(unpack(view), values.data());
  }
  return to_array(std::move(values), {view.rows, view.cols});
}

py::tuple code_arrays(const PyWeight& self) {
  const WeightView& view = self.weight->view();
  require(is_integer(view.type), "a weight of type ", type_name(view.type), " has no codes");
  std::vector<std::int8_t> codes;
  std::vector<std::uint16_t> stored;
  {
    const WithoutGil released;
    StoredMatrix matrix = unpack(view);
    codes.resize(matrix.raw.size());
    for (std::size_t i = 0; i < codes.size(); ++i)
      codes[i] = static_cast<std::int8_t>(raw_to_f32(view.type, matrix.raw[i]));
    stored = std::move(matrix.scales);
  }
  const int used = view.group == 0 ? 1 : (view.cols + view.group - 1) / view.group;
  py::array scales(py::dtype("float16"), std::vector<py::ssize_t>{view.rows, used});
  auto* halves = static_cast<std::uint16_t*>(scales.mutable_data());
  for (int r = 0; r < view.rows; ++r)
    std::copy_n(stored.data() + static_cast<std::int64_t>(r) * view.groups, used,
                halves + static_cast<std::int64_t>(r) * used);
  return py::make_tuple(to_array(std::move(codes), {view.rows, view.cols}), scales);
}

py::object pattern_of(const PyWeight& self) {
  const WeightView& view = self.weight->view();
  if (view.format != Format::kNm) return py::none();
  return py::make_tuple(view.n, view.m);
}

// x [batch, cols] as rows with the padding that kernels want.
struct PaddedInput {
  Buffer<float> memory;
  Rows rows;

  PaddedInput(const py::object& array, int cols) {
    const FloatArray x = to_floats(array, "x");
    require(x.ndim() == 2, "x must be a matrix [batch, cols], got ", x.ndim(), " dimensions");
    require(x.shape(1) == cols, "x must have ", cols, " columns, got ", x.shape(1));
    const int batch = to_int(x.shape(0), "batch");
    const std::int64_t stride = padded_cols(cols);
    memory.resize(static_cast<std::size_t>(batch) * static_cast<std::size_t>(stride) + kSpareBytes);
    for (int t = 0; t < batch; ++t)
      std::copy_n(x.data() + static_cast<std::int64_t>(t) * cols, cols, memory.data() + t * stride);
    rows = {memory.data(), batch, cols, stride};
  }
};

py::array linear(const PyWeight& weight, const py::object& x, const std::string& activations, int threads) {
  const WeightView& view = weight.weight->view();
  const PaddedInput input(x, view.cols);
  std::vector<float> y(static_cast<std::size_t>(input.rows.tokens) * static_cast<std::size_t>(view.rows));
  {
    const WithoutGil released;
    const Linear op(weight.weight, activations);
    ThreadTeam team(threads);
    ActivationCache cache;
    run_linears(team, {{&op, y.data(), view.rows}}, input.rows, cache);
  }
  return to_array(std::move(y), {input.rows.tokens, view.rows});
}

// One kernel by name, for tests and benches: y [batch, rows + 16], the last 16 columns NaN unless the kernel wrote
// there.
py::array run_kernel(const std::string& name, const PyWeight& weight, const py::object& x) {
  const WeightView& view = weight.weight->view();
  const KernelEntry& kernel = kernel_named(name);
  check_takes(kernel, view);
  const PaddedInput input(x, view.cols);
  ThreadTeam team(1);
  ActivationCache cache;
  cache.reset(input.rows);
  LinearArgs args{};
  args.weight = view;
  args.x = cache.get(kernel.activation, view.group == 32 ? 32 : kBlockCols, team);
  args.begin = 0;
  args.end = weight.weight->value_streams();
  args.y_stride = view.rows + kPanelRows;
  std::vector<float> y(static_cast<std::size_t>(input.rows.tokens) * static_cast<std::size_t>(args.y_stride),
                       std::numeric_limits<float>::quiet_NaN());
  args.y = y.data();
  if (input.rows.tokens > 0) kernel.run(args);
  return to_array(std::move(y), {input.rows.tokens, static_cast<py::ssize_t>(args.y_stride)});
}

// What the a8 kernels see of x: codes [batch, padded], scales and surpluses [batch, units].
py::tuple quantize_activations(const py::object& array, int unit) {
  const FloatArray x = to_floats(array, "x");
  require(x.ndim() == 2, "x must be a matrix [batch, cols], got ", x.ndim(), " dimensions");
  require(unit == 32 || unit == 64, "unit must be 32 or 64, got ", unit);
  const auto batch = x.shape(0);
  const auto cols = x.shape(1);
  const auto padded = static_cast<py::ssize_t>(padded_cols(cols));
  const py::ssize_t units = padded / unit;
  std::vector<std::int8_t> codes(static_cast<std::size_t>(batch * padded));
  std::vector<float> scales(static_cast<std::size_t>(batch * units));
  std::vector<std::int32_t> surplus(scales.size());
  for (py::ssize_t t = 0; t < batch; ++t)
    vector_kernels().quantize(x.data() + t * cols, cols, padded, unit, codes.data() + t * padded,
                              scales.data() + t * units, surplus.data() + t * units);
  return py::make_tuple(to_array(std::move(codes), {batch, padded}), to_array(std::move(scales), {batch, units}),
                        to_array(std::move(surplus), {batch, units}));
}

}  // namespace

void register_weight(py::module_& module) {
  using py::arg;
  py::class_<PyWeight>(module, "Weight", "An immutable packed weight matrix; rows are outputs, cols are inputs.")
      .def_property_readonly("rows", [](const PyWeight& w) { return w.weight->view().rows; })
      .def_property_readonly("cols", [](const PyWeight& w) { return w.weight->view().cols; })
      .def_property_readonly("format",
                             [](const PyWeight& w) { return std::string(format_name(w.weight->view().format)); })
      .def_property_readonly("type", [](const PyWeight& w) { return std::string(type_name(w.weight->view().type)); })
      .def_property_readonly("group", [](const PyWeight& w) { return w.weight->view().group; })
      .def_property_readonly("pattern", &pattern_of)
      .def_property_readonly("nnz",
                             [](const PyWeight& w) {
                               const WithoutGil released;
                               return count_nonzeros(w.weight->view());
                             })
      .def_property_readonly("nbytes", [](const PyWeight& w) { return w.weight->bytes(); })
      .def("streams", &stream_arrays)
      .def("unpack", &unpack_array)
      .def("codes", &code_arrays);
  module.def("choose_scales", &scales_array, arg("values"), arg("type"), arg("group") = 64);
  module.def("round_codes", &round_to_codes, arg("values"), arg("type"), arg("group") = 64);
  module.def("pack", &pack_array, arg("values"), arg("format"), arg("type"), arg("group") = 64,
             arg("pattern") = py::none());
  module.def("pack_codes", &pack_codes, arg("codes"), arg("scales"), arg("format"), arg("type"), arg("group") = 64,
             arg("pattern") = py::none());
  module.def("weight_from_streams", &from_streams, arg("format"), arg("type"), arg("rows"), arg("cols"), arg("group"),
             arg("pattern"), arg("streams"));
  module.def("linear", &linear, arg("weight"), arg("x"), arg("activations") = "auto", arg("threads") = 0);
  module.def("run_kernel", &run_kernel, arg("name"), arg("weight"), arg("x"));
  module.def("quantize_activations", &quantize_activations, arg("x"), arg("unit") = 64);
}

}  // namespace gossamer
