#include "engine/decoder.h"

#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "bindings/bindings.h"

namespace gossamer {
namespace {

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

// Token ids as the caller gave them, copied, so that nothing can change them under a running step.
std::vector<std::int32_t> to_tokens(const py::object& ids, int vocab) {
  const auto array = py::array::ensure(ids);
  require(static_cast<bool>(array) && array.ndim() == 1, "token ids must be a vector of integers");
  const char kind = array.dtype().kind();
  require(array.size() == 0 || kind == 'i' || kind == 'u', "token ids must be integers, got dtype ",
          py::str(array.dtype()).cast<std::string>());
  const auto wide = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>::ensure(array);
  std::vector<std::int32_t> tokens;
  tokens.reserve(static_cast<std::size_t>(wide.size()));
  for (py::ssize_t i = 0; i < wide.size(); ++i) {
    const std::int64_t id = wide.at(i);
    require(id >= 0 && id < vocab, "token id ", id, " is outside the vocabulary of ", vocab);
    tokens.push_back(static_cast<std::int32_t>(id));
  }
  return tokens;
}

// The engine takes one call at a time. Python threads queue here without the GIL, and still hear Ctrl-C.
class Turn {
 public:
  explicit Turn(std::function<void()> first) : first_(std::move(first)) {}

  // Runs what every turn begins with, then f, without the GIL when it is this thread's turn.
  template <class F>
  auto take(const F& f) {
    const WithoutGil released;
    if (pid_ != getpid()) {
      if (holder_ != std::thread::id())
        throw std::runtime_error("the process was forked during a call of this decoder; load the model again");
      pid_ = getpid();
    }
    if (holder_ == std::this_thread::get_id())
      throw std::runtime_error("this thread is inside a call of this decoder already");
    SignalPoll poll;
    // By the system's clock, since ThreadSanitizer does not see locks that are taken by the steady one.
    while (!mutex_.try_lock_until(std::chrono::system_clock::now() + std::chrono::milliseconds(50))) poll();
    const Hold hold{*this};
    first_();
    return f();
  }

  // Runs what every turn begins with if nobody has the turn: never waits, and keeps the GIL.
  void try_take() {
    if (holder_ == std::this_thread::get_id() || !mutex_.try_lock()) return;
    const Hold hold{*this};
    first_();
  }

 private:
  struct Hold {
    Turn& turn;
    explicit Hold(Turn& t) : turn(t) { turn.holder_ = std::this_thread::get_id(); }
    ~Hold() {
      turn.holder_ = std::thread::id();
      turn.mutex_.unlock();
    }
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;
  };

  std::function<void()> first_;
  std::timed_mutex mutex_;
  std::atomic<std::thread::id> holder_{};
  std::atomic<pid_t> pid_ = getpid();
};

// Sequences to forget when a turn comes. It has no lock, which a fork could leave taken for ever.
class Forgotten {
 public:
  Forgotten() = default;
  ~Forgotten() {
    take([](std::int64_t) {});
  }
  Forgotten(const Forgotten&) = delete;
  Forgotten& operator=(const Forgotten&) = delete;

  void add(std::int64_t sequence) {
    auto* note = new Note{sequence, first_.load()};
    while (!first_.compare_exchange_weak(note->next, note)) {
    }
  }

  template <class F>
  void take(const F& f) {
    for (std::unique_ptr<Note> note(first_.exchange(nullptr)); note; note.reset(note->next)) f(note->sequence);
  }

 private:
  struct Note {
    std::int64_t sequence;
    Note* next;
  };
  std::atomic<Note*> first_{};
};

class PyDecoder {
 public:
  PyDecoder(const py::dict& config, const py::dict& weights, const py::dict& vectors, int threads,
            const std::string& kv, const std::string& activations)
      : config_(config) {
    Decoder::Weights packed;
    for (const auto& [name, value] : weights) packed[name.cast<std::string>()] = value.cast<const PyWeight&>().weight;
    Decoder::Vectors floats;
    for (const auto& [name, value] : vectors) {
      const auto text = name.cast<std::string>();
      const FloatArray array = to_floats(py::reinterpret_borrow<py::object>(value), text.c_str());
      require(array.ndim() == 1, "vector '", text, "' must have one dimension, got ", array.ndim());
      floats[text] = std::vector<float>(array.data(), array.data() + array.size());
    }
    const DecoderConfig checked = to_config(config);
    const DecoderOptions options{threads, to_kv(kv), activations};
    const WithoutGil released;
    decoder_ = std::make_unique<Decoder>(checked, packed, floats, options);
  }

  py::array step(const std::vector<std::pair<std::int64_t, py::object>>& batch, bool all_logits) {
    const int vocab = decoder_->config().vocab;
    std::vector<std::vector<std::int32_t>> tokens;
    for (const auto& [sequence, ids] : batch) tokens.push_back(to_tokens(ids, vocab));
    std::vector<StepEntry> entries;
    for (std::size_t i = 0; i < batch.size(); ++i)
      entries.push_back({batch[i].first, tokens[i].data(),
                         to_int(static_cast<py::ssize_t>(tokens[i].size()), "the number of tokens")});
    auto logits = turn_.take([&] { return decoder_->step(entries, all_logits, SignalPoll()); });
    const auto rows = static_cast<py::ssize_t>(logits.size()) / vocab;
    return to_array(std::move(logits), {rows, vocab});
  }

  void rollback(std::int64_t sequence, int n) {
    turn_.take([&] { decoder_->rollback(sequence, n); });
  }
  // The garbage collector may drop a sequence at any moment, in a thread that is inside a call too: this never waits.
  void free(std::int64_t sequence) {
    forgotten_.add(sequence);
    turn_.try_take();
  }
  int length(std::int64_t sequence) {
    return turn_.take([&] { return decoder_->length(sequence); });
  }
  std::vector<std::pair<std::string, std::string>> kernels() {
    return turn_.take([&] { return decoder_->kernels(); });
  }
  std::int64_t weight_bytes() {
    return turn_.take([&] { return decoder_->weight_bytes(); });
  }

  py::array embed(const py::object& ids) {
    const std::vector<std::int32_t> tokens = to_tokens(ids, decoder_->config().vocab);
    const int n = to_int(static_cast<py::ssize_t>(tokens.size()), "the number of tokens");
    return to_array(turn_.take([&] { return decoder_->embed(tokens.data(), n); }), {n, decoder_->config().hidden});
  }

  py::tuple forward_block(int index, const py::object& array, const std::vector<std::string>& names,
                          int sequence_length) {
    auto [out, inputs] = run_block(index, array, names, sequence_length, true);
    const auto tokens = static_cast<py::ssize_t>(out.size()) / decoder_->config().hidden;
    return py::make_tuple(to_array(std::move(out), {tokens, decoder_->config().hidden}), inputs);
  }

  py::dict block_inputs(int index, const py::object& array, const std::vector<std::string>& names,
                        int sequence_length) {
    return run_block(index, array, names, sequence_length, false).second;
  }

  py::array head(const py::object& array) {
    const FloatArray hidden = to_hidden(array);
    const int tokens = to_int(hidden.shape(0), "the number of tokens");
    const float* data = hidden.data();
    return to_array(turn_.take([&] { return decoder_->head(data, tokens, SignalPoll()); }),
                    {tokens, decoder_->config().vocab});
  }

  void set_weight(const std::string& name, const PyWeight& weight) {
    const auto packed = weight.weight;
    turn_.take([&] { decoder_->set_weight(name, packed); });
  }

  const Decoder& decoder() const { return *decoder_; }  // for what never changes
  const py::dict& config() const { return config_; }

 private:
  void forget() {
    forgotten_.take([&](std::int64_t sequence) { decoder_->free(sequence); });
  }

  std::pair<std::vector<float>, py::dict> run_block(int index, const py::object& array,
                                                    const std::vector<std::string>& names, int sequence_length,
                                                    bool whole) {
    const FloatArray hidden = to_hidden(array);
    const int tokens = to_int(hidden.shape(0), "the number of tokens");
    std::vector<float> out(hidden.data(), hidden.data() + hidden.size());
    Captures captures;
    for (const std::string& name : names) captures[name];
    turn_.take(
        [&] { decoder_->forward_block(index, out.data(), tokens, sequence_length, captures, whole, SignalPoll()); });
    py::dict inputs;
    for (auto& [name, values] : captures) {
      const py::ssize_t cols = static_cast<py::ssize_t>(values.size()) / tokens;
      inputs[py::str(name)] = to_array(std::move(values), {tokens, cols});
    }
    return {std::move(out), inputs};
  }

  FloatArray to_hidden(const py::object& array) const {
    FloatArray hidden = to_floats(array, "hidden");
    require(hidden.ndim() == 2 && hidden.shape(1) == decoder_->config().hidden, "hidden must be [tokens, ",
            decoder_->config().hidden, "]");
    return hidden;
  }

  py::dict config_;
  std::unique_ptr<Decoder> decoder_;
  Forgotten forgotten_;
  Turn turn_{[this] { forget(); }};
};

}  // namespace

void register_decoder(py::module_& module) {
  using py::arg;
  py::class_<PyDecoder>(module, "Decoder", "A decoder-only transformer over packed weights with a paged KV cache.")
      .def(py::init<const py::dict&, const py::dict&, const py::dict&, int, const std::string&, const std::string&>(),
           arg("config"), arg("weights"), arg("vectors"), py::kw_only(), arg("threads") = 0, arg("kv") = "f32",
           arg("activations") = "auto")
      .def("step", &PyDecoder::step, arg("batch"), arg("all_logits") = false)
      .def("rollback", &PyDecoder::rollback, arg("seq"), arg("n"))
      .def("free", &PyDecoder::free, arg("seq"))
      .def("length", &PyDecoder::length, arg("seq"))
      .def("embed", &PyDecoder::embed, arg("tokens"))
      .def("forward_block", &PyDecoder::forward_block, arg("index"), arg("hidden"),
           arg("capture") = std::vector<std::string>(), arg("sequence_length") = 0)
      .def("block_inputs", &PyDecoder::block_inputs, arg("index"), arg("hidden"), arg("capture"),
           arg("sequence_length") = 0)
      .def("head", &PyDecoder::head, arg("hidden"))
      .def("set_weight", &PyDecoder::set_weight, arg("name"), arg("weight"))
      .def("kernels", &PyDecoder::kernels)
      .def_property_readonly("vocab", [](const PyDecoder& d) { return d.decoder().config().vocab; })
      .def_property_readonly("threads", [](const PyDecoder& d) { return d.decoder().threads(); })
      .def_property_readonly(
          "kv", [](const PyDecoder& d) { return std::string(d.decoder().kv() == KvType::kF32 ? "f32" : "f16"); })
      .def_property_readonly("config", &PyDecoder::config)
      .def_property_readonly("weight_bytes", &PyDecoder::weight_bytes)
      .def_property_readonly("kv_bytes_per_token", [](const PyDecoder& d) { return d.decoder().kv_token_bytes(); });
}

}  // namespace gossamer
