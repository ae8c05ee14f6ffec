// What a decoder on a GPU does between its linears.
#include "bindings/cuda.h"

namespace gossamer::cuda {
namespace {

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

void attend(Address queries, Address keys, Address values, Address place, Address out, int heads, int kv_heads,
            int width, std::int64_t capacity, float scale, int splits, Address partials, Address counters,
            const std::string& type, int device, Address stream) {
  require(heads >= 1 && kv_heads >= 1 && heads % kv_heads == 0, "heads must be a multiple of kv_heads, got ", heads,
          " and ", kv_heads);
  require(width >= 1 && width <= kMaxHeadWidth, "width must be 1 to ", kMaxHeadWidth, ", got ", width);
  require(splits >= 1 && splits <= kMaxStepTokens, "splits must be 1 to ", kMaxStepTokens, ", got ", splits);
  const HalfType half = half_from_name(type);
  const AttendArgs args = {pointer<const std::uint16_t>(queries, "queries"),
                           pointer<const std::uint16_t>(keys, "keys"),
                           pointer<const std::uint16_t>(values, "values"),
                           pointer<const std::int64_t>(place, "place"),
                           pointer<std::uint16_t>(out, "out"),
                           heads,
                           kv_heads,
                           width,
                           capacity,
                           scale,
                           splits,
                           pointer<float>(partials, "partials"),
                           pointer<std::uint32_t>(counters, "counters")};
  run_on(device, "attend", [&] { return launch_attend(args, half, reinterpret_cast<void*>(stream)); });
}

}  // namespace

void register_cuda_steps(py::module_& module) {
  module.def("add_norm", &add_norm, py::arg("states"), py::arg("update"), py::arg("weight"), py::arg("out"),
             py::arg("tokens"), py::arg("width"), py::arg("eps"), py::arg("type"), py::arg("device"),
             py::arg("stream"));
  module.def("rotate", &rotate, py::arg("qkv"), py::arg("cos"), py::arg("sin"), py::arg("places"), py::arg("queries"),
             py::arg("keys"), py::arg("values"), py::arg("tokens"), py::arg("heads"), py::arg("kv_heads"),
             py::arg("width"), py::arg("half"), py::arg("capacity"), py::arg("type"), py::arg("device"),
             py::arg("stream"));
  module.attr("MAX_HEAD_WIDTH") = kMaxHeadWidth;
  module.def("attend", &attend, py::arg("queries"), py::arg("keys"), py::arg("values"), py::arg("place"),
             py::arg("out"), py::arg("heads"), py::arg("kv_heads"), py::arg("width"), py::arg("capacity"),
             py::arg("scale"), py::arg("splits"), py::arg("partials"), py::arg("counters"), py::arg("type"),
             py::arg("device"), py::arg("stream"));
  module.def("gate", &gate, py::arg("gate_up"), py::arg("out"), py::arg("tokens"), py::arg("width"), py::arg("type"),
             py::arg("device"), py::arg("stream"));
}

}  // namespace gossamer::cuda
