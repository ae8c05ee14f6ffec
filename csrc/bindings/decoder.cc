#include "engine/decoder.h"

#include <mutex>

#include "bindings/bindings.h"

namespace gossamer {
namespace {

using TokenArray = py::array_t<std::int32_t, py::array::c_style | py::array::forcecast>;

template <class T>
T field(const py::dict& config, const char* name) {
  require(config.contains(name), "decoder config: ", name, " is missing");
  try {
    return config[name].cast<T>();
  } catch (const py::cast_error&) {
    throw InvalidArgument(concat("decoder config: ", name, " has the wrong type"));
  }
}

DecoderConfig to_config(const py::dict& values) {
  DecoderConfig config;
  config.hidden = field<int>(values, "hidden");
  config.layers = field<int>(values, "layers");
  config.heads = field<int>(values, "heads");
  config.kv_heads = field<int>(values, "kv_heads");
  config.head_dim = field<int>(values, "head_dim");
  config.intermediate = field<int>(values, "intermediate");
  config.vocab = field<int>(values, "vocab");
  config.context = field<int>(values, "context");
  config.norm_eps = field<float>(values, "norm_eps");
  config.inv_freq = field<std::vector<float>>(values, "inv_freq");
  config.rope_scale = field<float>(values, "rope_scale");
  config.tied = field<bool>(values, "tied");
  const auto activation = field<std::string>(values, "activation");
  require(activation == "silu", "decoder config: activation must be silu, got '", activation, "'");
  return config;
}

KvType to_kv(const std::string& name) {
  require(name == "f32" || name == "f16", "kv must be f32 or f16, got '", name, "'");
  return name == "f32" ? KvType::kF32 : KvType::kF16;
}

// The engine takes one call at a time; Python threads queue here, without the GIL.
class PyDecoder {
 public:
  PyDecoder(const py::dict& config, const py::dict& weights, const py::dict& vectors, int threads, const std::string& kv, const std::string& activations)
      : config_(config) {
    Decoder::Weights packed;
    for (const auto& [name, value] : weights) {
      const auto& weight = value.cast<const PyWeight&>();
      packed[name.cast<std::string>()] = weight.weight;
      owners_[name] = value;
    }
    Decoder::Vectors floats;
    for (const auto& [name, value] : vectors) {
      const auto array = value.cast<FloatArray>();
      require(array.ndim() == 1, "vector '", name.cast<std::string>(), "' must have one dimension, got ", array.ndim());
      floats[name.cast<std::string>()] = std::vector<float>(array.data(), array.data() + array.size());
    }
    decoder_ = std::make_unique<Decoder>(to_config(config), packed, floats, DecoderOptions{threads, to_kv(kv), activations});
  }

  py::array step(const std::vector<std::pair<std::int64_t, TokenArray>>& batch, bool all_logits) {
    std::vector<StepEntry> entries;
    for (const auto& [sequence, tokens] : batch) {
      require(tokens.ndim() == 1, "tokens of sequence ", sequence, " must have one dimension, got ", tokens.ndim());
      entries.push_back({sequence, tokens.data(), to_int(tokens.size(), "the number of tokens")});
    }
    std::vector<float> logits;
    {
      const py::gil_scoped_release release;
      const std::lock_guard<std::mutex> lock(mutex_);
      logits = decoder_->step(entries, all_logits, SignalPoll());
    }
    const py::ssize_t vocab = decoder_->config().vocab;
    const py::ssize_t rows = static_cast<py::ssize_t>(logits.size()) / vocab;
    return to_array(std::move(logits), {rows, vocab});
  }

  void rollback(std::int64_t sequence, int n) {
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(mutex_);
    decoder_->rollback(sequence, n);
  }

  void free(std::int64_t sequence) {
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(mutex_);
    decoder_->free(sequence);
  }

  int length(std::int64_t sequence) {
    const py::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(mutex_);
    return decoder_->length(sequence);
  }

  py::array embed(const TokenArray& tokens) {
    require(tokens.ndim() == 1, "tokens must have one dimension, got ", tokens.ndim());
    const int n = to_int(tokens.size(), "the number of tokens");
    return to_array(decoder_->embed(tokens.data(), n), {n, decoder_->config().hidden});
  }

  py::tuple forward_block(int index, const FloatArray& hidden, const std::vector<std::string>& names, int sequence_length) {
    const int tokens = rows_of(hidden);
    std::vector<float> out(hidden.data(), hidden.data() + hidden.size());
    Captures captures;
    for (const std::string& name : names) captures[name];
    {
      const py::gil_scoped_release release;
      const std::lock_guard<std::mutex> lock(mutex_);
      decoder_->forward_block(index, out.data(), tokens, sequence_length, captures, SignalPoll());
    }
    py::dict inputs;
    for (auto& [name, values] : captures) {
      const py::ssize_t cols = static_cast<py::ssize_t>(values.size()) / tokens;
      inputs[py::str(name)] = to_array(std::move(values), {tokens, cols});
    }
    return py::make_tuple(to_array(std::move(out), {tokens, decoder_->config().hidden}), inputs);
  }

  py::array head(const FloatArray& hidden) {
    const int tokens = rows_of(hidden);
    std::vector<float> out;
    {
      const py::gil_scoped_release release;
      const std::lock_guard<std::mutex> lock(mutex_);
      out = decoder_->head(hidden.data(), tokens, SignalPoll());
    }
    return to_array(std::move(out), {tokens, decoder_->config().vocab});
  }

  void set_weight(const std::string& name, const py::object& weight) {
    const auto packed = weight.cast<const PyWeight&>().weight;
    {
      const py::gil_scoped_release release;
      const std::lock_guard<std::mutex> lock(mutex_);
      decoder_->set_weight(name, packed);
    }
    owners_[py::str(name)] = weight;
  }

  const Decoder& decoder() const { return *decoder_; }
  const py::dict& config() const { return config_; }

 private:
  int rows_of(const FloatArray& hidden) const {
    require(hidden.ndim() == 2 && hidden.shape(1) == decoder_->config().hidden, "hidden must be [tokens, ", decoder_->config().hidden, "]");
    return to_int(hidden.shape(0), "the number of tokens");
  }

  py::dict config_;
  py::dict owners_;  // keeps the weights' memory
  std::unique_ptr<Decoder> decoder_;
  std::mutex mutex_;
};

}  // namespace

void register_decoder(py::module_& module) {
  using py::arg;
  py::class_<PyDecoder>(module, "Decoder", "A decoder-only transformer over packed weights with a paged KV cache.")
      .def(py::init<const py::dict&, const py::dict&, const py::dict&, int, const std::string&, const std::string&>(), arg("config"), arg("weights"),
           arg("vectors"), py::kw_only(), arg("threads") = 0, arg("kv") = "f32", arg("activations") = "auto")
      .def("step", &PyDecoder::step, arg("batch"), arg("all_logits") = false)
      .def("rollback", &PyDecoder::rollback, arg("seq"), arg("n"))
      .def("free", &PyDecoder::free, arg("seq"))
      .def("length", &PyDecoder::length, arg("seq"))
      .def("embed", &PyDecoder::embed, arg("tokens"))
      .def("forward_block", &PyDecoder::forward_block, arg("index"), arg("hidden"), arg("capture") = std::vector<std::string>(),
           arg("sequence_length") = 0)
      .def("head", &PyDecoder::head, arg("hidden"))
      .def("set_weight", &PyDecoder::set_weight, arg("name"), arg("weight"))
      .def("kernels", [](const PyDecoder& d) { return d.decoder().kernels(); })
      .def_property_readonly("threads", [](const PyDecoder& d) { return d.decoder().threads(); })
      .def_property_readonly("kv", [](const PyDecoder& d) { return std::string(d.decoder().kv() == KvType::kF32 ? "f32" : "f16"); })
      .def_property_readonly("config", &PyDecoder::config)
      .def_property_readonly("weight_bytes", [](const PyDecoder& d) { return d.decoder().weight_bytes(); })
      .def_property_readonly("kv_bytes_per_token", [](const PyDecoder& d) { return d.decoder().kv_token_bytes(); });
}

}  // namespace gossamer
