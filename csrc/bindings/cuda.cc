// The module for cards, `_cuda`; and, from the same lines, `_simt`, whose kernels are loops on the processor. Addresses
// and streams are numbers here: Python keeps what they belong to alive.
#include <algorithm>
#include <optional>

#include "bindings/bindings.h"
#include "gossamer_build.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/plan.h"
#ifdef GOSSAMER_SIMT
#include "kernels/cuda/simt.h"
#endif

namespace gossamer::cuda {
namespace {

using Address = std::uintptr_t;
using Pattern = std::optional<std::pair<int, int>>;

constexpr const char* kLayoutNames[2] = {"bitmap", "nm24"};

void check(int status, const char* what) {
  if (status != 0) throw std::runtime_error(concat("CUDA: ", what, ": ", error_text(status)));
}

template <class T>
T* pointer(Address address, const char* what) {
  require(address != 0, what, " must not be null");
  return reinterpret_cast<T*>(address);
}

Layout layout_from_name(const std::string& name) {
  for (int i = 0; i < 2; ++i)
    if (name == kLayoutNames[i]) return static_cast<Layout>(i);
  throw InvalidArgument(concat("layout must be bitmap or nm24, got '", name, "'"));
}

HalfType half_from_name(const std::string& name) {
  require(name == "f16" || name == "bf16", "type must be f16 or bf16, got '", name, "'");
  return name == "f16" ? HalfType::kF16 : HalfType::kBf16;
}

// Runs a launcher with its device current.
template <class Launch>
void run_on(int device, const char* what, const Launch& launch) {
  const WithoutGil released;
  const DeviceGuard guard(device);
  check(guard.status(), what);
  check(launch(), what);
}

struct PyDeviceWeight {
  DeviceWeight view;
  std::int64_t words;  // of all records; known from the start for nm24, 0 until `attach` for bitmap
};

PyDeviceWeight make_weight(const std::string& layout_name, const std::string& type_text, int rows, int cols,
                           int group) {
  const Layout layout = layout_from_name(layout_name);
  const ValueType type = type_from_name(type_text.c_str());
  require(type != ValueType::kF32, "values must be f16, bf16, int8 or int4 on a card, got f32");
  const PackedWeight packed(Format::kBitmap, type, rows, cols, group, 0, 0);
  const WeightView& from = packed.view();
  const std::int64_t tiles = static_cast<std::int64_t>(from.panels) * from.blocks;
  const std::int64_t most = tiles * (kLaneWords + kTileRows * kTileCols * (is_integer(type) ? 8 : 16) / 32);
  require(most <= 0xffffffffLL - kSpareWords, "a weight of ", rows, " x ", cols, " is too large for a card");
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

// The packed weight that records are made from; its streams lie in the card's memory, checked when they were on the
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

void linear(const PyDeviceWeight& weight, Address x, std::int64_t x_stride, const std::string& type, int tokens,
            Address y, std::int64_t y_stride, Address bias, int splits, Address partials, Address counters, int device,
            Address stream) {
  LinearArgs args = {};
  args.weight = attached(weight);
  require(tokens >= 1 && tokens <= kMaxTokens, "tokens must be 1 to ", kMaxTokens, ", got ", tokens);
  require(tokens == 1 || (x_stride >= args.weight.cols && y_stride >= args.weight.rows),
          "strides must be at least the weight's cols and rows, got ", x_stride, " and ", y_stride);
  const int units = (args.weight.tiles + kSplitTiles - 1) / kSplitTiles;
  require(splits >= 1 && splits <= units, "splits must be 1 to ", units, ", got ", splits);
  args.x = pointer<const std::uint16_t>(x, "x");
  args.x_stride = x_stride;
  args.tokens = tokens;
  args.y = pointer<std::uint16_t>(y, "y");
  args.y_stride = y_stride;
  args.bias = reinterpret_cast<const std::uint16_t*>(bias);
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
  require(tokens >= 1 && tokens <= kMaxFewTokens, "tokens must be 1 to ", kMaxFewTokens, ", got ", tokens);
  require(tokens == 1 || (x_stride >= cols && y_stride >= rows),
          "strides must be at least the weight's cols and rows, got ", x_stride, " and ", y_stride);
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
  args.x = pointer<const std::uint16_t>(x, "x");
  args.x_stride = x_stride;
  args.tokens = tokens;
  args.y = pointer<std::uint16_t>(y, "y");
  args.y_stride = y_stride;
  args.bias = reinterpret_cast<const std::uint16_t*>(bias);
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

HalfType step_type(const std::string& type, int tokens, int width) {
  require(tokens >= 1 && tokens <= kMaxStepTokens, "tokens must be 1 to ", kMaxStepTokens, ", got ", tokens);
  require(width >= 1, "width must be positive, got ", width);
  return half_from_name(type);
}

void add_norm(Address states, Address update, Address weight, Address out, int tokens, int width, float eps,
              const std::string& type, int device, Address stream) {
  const HalfType half = step_type(type, tokens, width);
  const AddNormArgs args = {pointer<std::uint16_t>(states, "states"),
                            reinterpret_cast<const std::uint16_t*>(update),
                            pointer<const float>(weight, "weight"),
                            pointer<std::uint16_t>(out, "out"),
                            tokens,
                            width,
                            eps};
  run_on(device, "add_norm", [&] { return launch_add_norm(args, half, reinterpret_cast<void*>(stream)); });
}

void rotate(Address qkv, Address cos, Address sin, Address places, Address queries, Address keys, Address values,
            int tokens, int heads, int kv_heads, int width, int half_width, std::int64_t capacity,
            const std::string& type, int device, Address stream) {
  const HalfType half = step_type(type, tokens, width);
  require(heads >= 1 && kv_heads >= 1, "heads must be positive, got ", heads, " and ", kv_heads);
  require(half_width >= 0 && 2 * half_width <= width, "half must be 0 to ", width / 2, ", got ", half_width);
  const RotateArgs args = {pointer<const std::uint16_t>(qkv, "qkv"),
                           reinterpret_cast<const float*>(cos),
                           reinterpret_cast<const float*>(sin),
                           pointer<const std::int64_t>(places, "places"),
                           pointer<std::uint16_t>(queries, "queries"),
                           pointer<std::uint16_t>(keys, "keys"),
                           pointer<std::uint16_t>(values, "values"),
                           tokens,
                           heads,
                           kv_heads,
                           width,
                           half_width,
                           capacity};
  run_on(device, "rotate", [&] { return launch_rotate(args, half, reinterpret_cast<void*>(stream)); });
}

void gate(Address gate_up, Address out, int tokens, int width, const std::string& type, int device, Address stream) {
  const HalfType half = step_type(type, tokens, width);
  const GateArgs args = {pointer<const std::uint16_t>(gate_up, "gate_up"), pointer<std::uint16_t>(out, "out"), tokens,
                         width};
  run_on(device, "gate", [&] { return launch_gate(args, half, reinterpret_cast<void*>(stream)); });
}

int device_count() {
  int count = 0;
  check(count_devices(&count), "no card can be used");
  return count;
}

py::dict device_facts(int device) {
  DeviceFacts facts = {};
  check(describe_device(device, &facts), "card");
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
  module.def("add_norm", &add_norm, py::arg("states"), py::arg("update"), py::arg("weight"), py::arg("out"),
             py::arg("tokens"), py::arg("width"), py::arg("eps"), py::arg("type"), py::arg("device"),
             py::arg("stream"));
  module.def("rotate", &rotate, py::arg("qkv"), py::arg("cos"), py::arg("sin"), py::arg("places"), py::arg("queries"),
             py::arg("keys"), py::arg("values"), py::arg("tokens"), py::arg("heads"), py::arg("kv_heads"),
             py::arg("width"), py::arg("half"), py::arg("capacity"), py::arg("type"), py::arg("device"),
             py::arg("stream"));
  module.def("gate", &gate, py::arg("gate_up"), py::arg("out"), py::arg("tokens"), py::arg("width"), py::arg("type"),
             py::arg("device"), py::arg("stream"));
#ifdef GOSSAMER_SIMT
  module.def(
      "schedule", [](bool backwards, bool late_copies) { schedule() = {backwards, late_copies}; }, py::arg("backwards"),
      py::arg("late_copies"));
#endif
}

}  // namespace
}  // namespace gossamer::cuda

PYBIND11_MODULE(GOSSAMER_MODULE, module) {
  module.doc() = "gossamer's kernels for CUDA cards. See gossamer.cuda for the public interface.";
  module.attr("__version__") = GOSSAMER_VERSION;
  module.attr("__source_hash__") = GOSSAMER_SOURCE_HASH;
  gossamer::cuda::register_cuda(module);
}
