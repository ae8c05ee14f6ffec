// The module for GPUs, `_cuda`; and, from the same lines, `_simt`, whose kernels are loops on the processor. Addresses
// and streams are numbers here: Python keeps what they belong to alive.
#include <algorithm>
#include <optional>

#include "bindings/cuda.h"
#include "gossamer_build.h"
#include "kernels/cuda/plan.h"
#ifdef GOSSAMER_SIMT
#include "kernels/cuda/simt.h"
#endif

namespace gossamer::cuda {
namespace {

using Pattern = std::optional<std::pair<int, int>>;

constexpr const char* kLayoutNames[2] = {"bitmap", "nm24"};

Layout layout_from_name(const std::string& name) {
  for (int i = 0; i < 2; ++i)
    if (name == kLayoutNames[i]) return static_cast<Layout>(i);
  throw InvalidArgument(concat("layout must be bitmap or nm24, got '", name, "'"));
}

struct PyDeviceWeight {
  DeviceWeight view;
  std::int64_t words;  // of all records; known from the start for nm24, 0 until `attach` for bitmap
};

PyDeviceWeight make_weight(const std::string& layout_name, const std::string& type_text, int rows, int cols,
                           int group) {
  const Layout layout = layout_from_name(layout_name);
  const ValueType type = type_from_name(type_text.c_str());
  require(type != ValueType::kF32, "values must be f16, bf16, int8 or int4 on a GPU, got f32");
  const PackedWeight packed(Format::kBitmap, type, rows, cols, group, 0, 0);
  const WeightView& from = packed.view();
  const std::int64_t tiles = static_cast<std::int64_t>(from.panels) * from.blocks;
  const std::int64_t most = tiles * (kLaneWords + kTileRows * kTileCols * (is_integer(type) ? 8 : 16) / 32);
  require(most <= 0xffffffffLL - kSpareWords, "a weight of ", rows, " x ", cols, " is too large for a GPU");
  PyDeviceWeight out = {};
  out.view = {layout,     type,        rows, cols,    from.panels, from.blocks,
              from.group, from.groups, 1,    nullptr, nullptr,     nullptr};
  if (layout == Layout::kNm24) {
    out.words = tiles * nm24_record_words(type);
    const auto bytes = static_cast<int>(nm24_record_words(type)) * 4;
    while (out.view.stage < kSplitTiles && 2 * out.view.stage * bytes <= kStageBytes) out.view.stage *= 2;
  }
  return out;
}

void attach(PyDeviceWeight& weight, Address records, Address offsets, Address scales, std::int64_t words,
            const std::vector<std::uint32_t>& largest) {
  DeviceWeight& view = weight.view;
  view.records = pointer<const std::uint32_t>(records, "records");
  require(records % kCopyBytes == 0, "records must be aligned to ", kCopyBytes, " bytes");
  if (is_integer(view.type)) view.scales = pointer<const std::uint16_t>(scales, "scales");
  if (view.layout == Layout::kNm24) return;
  view.offsets = pointer<const std::uint32_t>(offsets, "offsets");
  require(largest.size() == 3, "largest must have 3 elements, got ", largest.size());
  weight.words = words;
  view.stage = largest[2] <= kStageBytes ? 4 : largest[1] <= kStageBytes ? 2 : 1;
}

const DeviceWeight& attached(const PyDeviceWeight& weight) {
  require(weight.view.records != nullptr, "the weight has no records yet");
  return weight.view;
}

// The packed weight that records are made from; its streams lie in the GPU's memory, checked when they were on the
// host.
RepackArgs repack_args(const PyDeviceWeight& to, const Pattern& pattern, Address masks) {
  RepackArgs args = {};
  args.to = to.view;
  const auto [n, m] = pattern.value_or(std::pair<int, int>{0, 0});
  const PackedWeight packed(pattern ? Format::kNm : Format::kBitmap, to.view.type, to.view.rows, to.view.cols,
                            to.view.group, n, m);
  args.from = packed.view();
  if (pattern)
    args.from.stride =
        static_cast<std::int64_t>(args.from.blocks) * (kTileRows * kTileCols * n / m) * value_bytes(args.from.type);
  args.from.masks = pointer<const std::uint64_t>(masks, "masks");
  return args;
}

void record_offsets(const PyDeviceWeight& weight, const Pattern& pattern, Address masks, Address sizes, Address offsets,
                    Address largest, int device, Address stream) {
  require(weight.view.layout == Layout::kBitmap, "records of layout nm24 have fixed sizes");
  RepackArgs args = repack_args(weight, pattern, masks);
  args.sizes = pointer<std::uint32_t>(sizes, "sizes");
  args.offsets = pointer<std::uint32_t>(offsets, "offsets");
  args.largest = pointer<std::uint32_t>(largest, "largest");
  auto* queue = reinterpret_cast<void*>(stream);
  run_on(device, "sizes of records", [&] { return launch_record_sizes(args, queue); });
  run_on(device, "offsets of records", [&] { return launch_record_offsets(args, queue); });
}

void make_records(const PyDeviceWeight& weight, const Pattern& pattern, Address masks, Address values,
                  Address value_offsets, Address offsets, Address records, int device, Address stream) {
  require(weight.view.layout == Layout::kBitmap || (pattern && pattern->first <= 2),
          "layout nm24 is for patterns that keep at most 2 of every 4 inputs");
  RepackArgs args = repack_args(weight, pattern, masks);
  args.from.values = pointer<const std::uint8_t>(values, "values");
  if (!pattern) args.from.offsets = pointer<const std::uint64_t>(value_offsets, "value_offsets");
  if (weight.view.layout == Layout::kBitmap) args.offsets = pointer<std::uint32_t>(offsets, "offsets");
  args.records = pointer<std::uint32_t>(records, "records");
  run_on(device, "records", [&] { return launch_records(args, reinterpret_cast<void*>(stream)); });
}

std::vector<LinearEntry> all_entries() {
  std::vector<LinearEntry> entries(std::begin(kBitmapEntries), std::end(kBitmapEntries));
  entries.insert(entries.end(), std::begin(kNm24Entries), std::end(kNm24Entries));
  return entries;
}

// What products of both kinds are told of their inputs and outputs.
template <class Args>
void set_operands(Args& args, Address x, std::int64_t x_stride, int tokens, int most_tokens, Address y,
                  std::int64_t y_stride, Address bias) {
  require(tokens >= 1 && tokens <= most_tokens, "tokens must be 1 to ", most_tokens, ", got ", tokens);
  require(tokens == 1 || (x_stride >= args.weight.cols && y_stride >= args.weight.rows),
          "strides must be at least the weight's cols and rows, got ", x_stride, " and ", y_stride);
  args.x = pointer<const std::uint16_t>(x, "x");
  args.x_stride = x_stride;
  args.tokens = tokens;
  args.y = pointer<std::uint16_t>(y, "y");
  args.y_stride = y_stride;
  args.bias = reinterpret_cast<const std::uint16_t*>(bias);
}

void linear(const PyDeviceWeight& weight, Address x, std::int64_t x_stride, const std::string& type, int tokens,
            Address y, std::int64_t y_stride, Address bias, int splits, Address partials, Address counters, int device,
            Address stream) {
  LinearArgs args = {};
  args.weight = attached(weight);
  set_operands(args, x, x_stride, tokens, kMaxTokens, y, y_stride, bias);
  const int units = (args.weight.tiles + kSplitTiles - 1) / kSplitTiles;
  require(splits >= 1 && splits <= units, "splits must be 1 to ", units, ", got ", splits);
  args.splits = splits;
  if (splits > 1) {
    args.partials = pointer<float>(partials, "partials");
    args.counters = pointer<std::uint32_t>(counters, "counters");
  }
  const HalfType half = half_from_name(type);
  static const std::vector<LinearEntry>& entries = *new std::vector<LinearEntry>(all_entries());
  const auto entry = std::find_if(entries.begin(), entries.end(), [&](const LinearEntry& e) {
    return e.layout == args.weight.layout && e.type == args.weight.type && e.activation == half;
  });
  require(entry != entries.end(), "no kernel multiplies ", type_name(args.weight.type), " weights with ", type,
          " activations");
  run_on(device, entry->name, [&] { return entry->launch(args, reinterpret_cast<void*>(stream)); });
}

void expand(const PyDeviceWeight& weight, const std::string& type, bool scaled, Address dense, std::int64_t stride,
            int device, Address stream) {
  ExpandArgs args = {};
  args.weight = attached(weight);
  require(stride >= args.weight.cols, "stride must be at least ", args.weight.cols, ", got ", stride);
  const HalfType half = half_from_name(type);
  require(is_integer(args.weight.type) || (args.weight.type == ValueType::kF16) == (half == HalfType::kF16), "a ",
          type_name(args.weight.type), " weight cannot be expanded as ", type);
  args.scaled = scaled;
  args.dense = pointer<std::uint16_t>(dense, "dense");
  args.stride = stride;
  run_on(device, "expand", [&] { return launch_expand(args, half, reinterpret_cast<void*>(stream)); });
}

void nonzeros_linear(const std::string& type_text, int rows, int cols, int group, Address offsets, Address steps,
                     Address values, Address scales, Address x, std::int64_t x_stride, const std::string& type,
                     int tokens, Address y, std::int64_t y_stride, Address bias, int rows_each, Address partials,
                     Address counters, int device, Address stream) {
  const ValueType value_type = type_from_name(type_text.c_str());
  const PackedWeight packed(Format::kBitmap, value_type, rows, cols, group, 0, 0);
  require(rows_each >= 1, "rows_each must be positive, got ", rows_each);
  NonZerosArgs args = {};
  args.weight = {value_type,
                 rows,
                 cols,
                 (cols + kChunkCols - 1) / kChunkCols,
                 packed.view().group,
                 packed.view().groups,
                 pointer<const std::uint32_t>(offsets, "offsets"),
                 pointer<const std::uint32_t>(steps, "steps"),
                 pointer<const std::uint8_t>(values, "values"),
                 nullptr};
  if (is_integer(value_type)) args.weight.scales = pointer<const std::uint16_t>(scales, "scales");
  set_operands(args, x, x_stride, tokens, kMaxFewTokens, y, y_stride, bias);
  args.rows_each = rows_each;
  if (args.weight.chunks > 1) {
    args.partials = pointer<float>(partials, "partials");
    args.counters = pointer<std::uint32_t>(counters, "counters");
  }
  const HalfType half = half_from_name(type);
  const auto* entry =
      std::find_if(std::begin(kNonZerosEntries), std::end(kNonZerosEntries),
                   [&](const NonZerosEntry& e) { return e.type == value_type && e.activation == half; });
  require(entry != std::end(kNonZerosEntries), "no kernel multiplies ", type_text, " weights with ", type,
          " activations");
  run_on(device, entry->name, [&] { return entry->launch(args, reinterpret_cast<void*>(stream)); });
}

int device_count() {
  int count = 0;
  check(count_devices(&count), "no GPU can be used");
  return count;
}

py::dict device_facts(int device) {
  DeviceFacts facts = {};
  check(describe_device(device, &facts), "GPU");
  py::dict out;
  out["name"] = std::string(facts.name);
  out["capability"] = py::make_tuple(facts.major, facts.minor);
  out["multiprocessors"] = facts.multiprocessors;
  out["memory"] = facts.memory;
  out["l2"] = facts.l2;
  return out;
}

void register_cuda(py::module_& module) {
  py::class_<PyDeviceWeight>(module, "DeviceWeight")
      .def(py::init(&make_weight), py::arg("layout"), py::arg("type"), py::arg("rows"), py::arg("cols"),
           py::arg("group") = 0)
      .def("attach", &attach, py::arg("records"), py::arg("offsets"), py::arg("scales"), py::arg("words"),
           py::arg("largest"))
      .def_property_readonly("layout",
                             [](const PyDeviceWeight& w) { return kLayoutNames[static_cast<int>(w.view.layout)]; })
      .def_property_readonly("type", [](const PyDeviceWeight& w) { return type_name(w.view.type); })
      .def_property_readonly("rows", [](const PyDeviceWeight& w) { return w.view.rows; })
      .def_property_readonly("cols", [](const PyDeviceWeight& w) { return w.view.cols; })
      .def_property_readonly("group", [](const PyDeviceWeight& w) { return w.view.group; })
      .def_property_readonly(
          "records", [](const PyDeviceWeight& w) { return static_cast<std::int64_t>(w.view.panels) * w.view.tiles; })
      .def_property_readonly("words", [](const PyDeviceWeight& w) { return w.words; })
      .def_property_readonly("stage", [](const PyDeviceWeight& w) { return w.view.stage; })
      .def(
          "plan_splits",
          [](const PyDeviceWeight& w, int multiprocessors) {
            require(multiprocessors > 0, "multiprocessors must be positive, got ", multiprocessors);
            return plan_splits(w.view, multiprocessors);
          },
          py::arg("multiprocessors"))
      .def(
          "partials",
          [](const PyDeviceWeight& w, int splits, int tokens) {
            return static_cast<std::int64_t>(splits) * tokens * w.view.panels * kTileRows;
          },
          py::arg("splits"), py::arg("tokens"))
      .def_property_readonly("counters",
                             [](const PyDeviceWeight& w) { return (w.view.panels + kLinearWarps - 1) / kLinearWarps; });
  module.attr("MAX_TOKENS") = kMaxTokens;
  module.attr("MAX_FEW_TOKENS") = kMaxFewTokens;
  module.attr("CHUNK_COLS") = kChunkCols;
  module.attr("SPARE_WORDS") = kSpareWords;
  module.def("kernels", [] {
    std::vector<std::string> names;
    for (const LinearEntry& entry : all_entries()) names.emplace_back(entry.name);
    for (const NonZerosEntry& entry : kNonZerosEntries) names.emplace_back(entry.name);
    return names;
  });
  module.def("device_count", &device_count);
  module.def("device_facts", &device_facts, py::arg("device"));
  module.def("record_offsets", &record_offsets, py::arg("weight"), py::arg("pattern"), py::arg("masks"),
             py::arg("sizes"), py::arg("offsets"), py::arg("largest"), py::arg("device"), py::arg("stream"));
  module.def("make_records", &make_records, py::arg("weight"), py::arg("pattern"), py::arg("masks"), py::arg("values"),
             py::arg("value_offsets"), py::arg("offsets"), py::arg("records"), py::arg("device"), py::arg("stream"));
  module.def("linear", &linear, py::arg("weight"), py::arg("x"), py::arg("x_stride"), py::arg("type"),
             py::arg("tokens"), py::arg("y"), py::arg("y_stride"), py::arg("bias"), py::arg("splits"),
             py::arg("partials"), py::arg("counters"), py::arg("device"), py::arg("stream"));
  module.def("nonzeros_linear", &nonzeros_linear, py::arg("weight_type"), py::arg("rows"), py::arg("cols"),
             py::arg("group"), py::arg("offsets"), py::arg("steps"), py::arg("values"), py::arg("scales"), py::arg("x"),
             py::arg("x_stride"), py::arg("type"), py::arg("tokens"), py::arg("y"), py::arg("y_stride"),
             py::arg("bias"), py::arg("rows_each"), py::arg("partials"), py::arg("counters"), py::arg("device"),
             py::arg("stream"));
  module.def("expand", &expand, py::arg("weight"), py::arg("type"), py::arg("scaled"), py::arg("dense"),
             py::arg("stride"), py::arg("device"), py::arg("stream"));
  register_cuda_steps(module);
#ifdef GOSSAMER_SIMT
  module.def(
      "schedule", [](bool backwards, bool late_copies) { schedule() = {backwards, late_copies}; }, py::arg("backwards"),
      py::arg("late_copies"));
#endif
}

}  // namespace
}  // namespace gossamer::cuda

PYBIND11_MODULE(GOSSAMER_MODULE, module) {
  module.doc() = "gossamer's kernels for GPUs. See gossamer.gpu.cuda for the public interface.";
  module.attr("__version__") = GOSSAMER_VERSION;
  module.attr("__source_hash__") = GOSSAMER_SOURCE_HASH;
  gossamer::cuda::register_cuda(module);
}
