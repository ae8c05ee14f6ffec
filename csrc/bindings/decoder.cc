#include "engine/decoder.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>
#include <type_traits>

#include "bindings/bindings.h"
#include "bindings/inputs.h"
#include "bindings/spec.h"
#include "bindings/turn.h"
#include "kernels/vectors.h"

namespace gossamer {
namespace {

KvType to_kv(const std::string& name) {
  for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kBf16, KvType::kInt8})
    if (name == kv_name(type)) return type;
  throw InvalidArgument(concat("kv must be f32, f16, bf16 or int8, got '", name, "'"));
}

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

// The threads of one or several decoders, which take turns.
struct Runtime {
  explicit Runtime(int threads) : team(std::make_shared<ThreadTeam>(threads)) {}

  std::shared_ptr<ThreadTeam> team;
  Turn turn;
};

// Rows of logits to write, as the caller keeps them.
FloatArray to_logits(const py::object& array, int vocab) {
  require(py::isinstance<FloatArray>(array), "into must be a float32 array of rows without gaps");
  auto rows = py::reinterpret_borrow<FloatArray>(array);
  require(rows.ndim() == 2 && rows.shape(1) == vocab, "into must be [rows, ", vocab, "]");
  require(rows.writeable() && reinterpret_cast<std::uintptr_t>(rows.data()) % sizeof(float) == 0,
          "into must be aligned memory that can be written");
  return rows;
}

PackedWeights to_weights(const py::dict& weights) {
  PackedWeights packed;
  for (const auto& [name, value] : weights) packed[name.cast<std::string>()] = value.cast<const PyWeight&>().weight;
  return packed;
}

Vectors to_vectors(const py::dict& vectors) {
  Vectors floats;
  for (const auto& [name, value] : vectors) {
    const auto text = name.cast<std::string>();
    const FloatArray array = to_floats(py::reinterpret_borrow<py::object>(value), text.c_str());
    require(array.ndim() == 1, "vector '", text, "' must have one dimension, got ", array.ndim());
    floats[text] = std::vector<float>(array.data(), array.data() + array.size());
  }
  return floats;
}

// Adapters by number, each with its weight.
using Choices = std::vector<std::pair<int, float>>;

Mix to_mix(const Choices& adapters) {
  Mix mix;
  for (const auto& [adapter, weight] : adapters) mix.push_back({adapter, weight});
  return mix;
}

class PyDecoder {
 public:
  PyDecoder(const py::dict& config, const py::dict& weights, const py::dict& vectors, int threads,
            const std::string& kv, const std::string& activations, std::int64_t kv_limit, const PyDecoder* team_of,
            const PyDecoder* draft_of)
      : config_(config) {
    const PackedWeights packed = to_weights(weights);
    const Vectors floats = to_vectors(vectors);
    const spec::Transformer described = to_spec(config);
    const KvType type = to_kv(kv);
    require(threads == 0 || team_of == nullptr, "threads and team_of exclude each other");
    require(draft_of == nullptr || (threads == 0 && team_of == nullptr && kv_limit == 0),
            "draft_of brings threads and a limit along");
    if (draft_of != nullptr) team_of = draft_of;
    const WithoutGil released;
    spec::validate(described);
    runtime_ = team_of != nullptr ? team_of->runtime_ : std::make_shared<Runtime>(threads);
    require(draft_of == nullptr || described.encoder == nullptr, "a draft that reads an encoder is not supported");
    decoder_ =
        std::make_shared<Decoder>(described, packed, floats, activations, runtime_->team,
                                  draft_of != nullptr ? draft_of->decoder_->shared_cache()
                                                      : std::make_shared<KvCache>(kv_shapes(described), type, kv_limit),
                                  draft_of != nullptr);
  }

  // Normed states of inputs, one behind the other.
  py::array encode(const std::vector<py::object>& inputs, const std::optional<std::vector<py::object>>& types,
                   const Choices& adapters) {
    const Encoded encoded(inputs, types, spec_of_inputs());
    return to_array(take([&] { return decoder_->encode(encoded.entries(), to_mix(adapters), SignalPoll()); }),
                    {encoded.rows(), decoder_->spec().hidden});
  }

  void remember(const std::vector<std::pair<std::int64_t, py::object>>& batch) {
    std::vector<std::int64_t> sequences;
    std::vector<py::object> inputs;
    for (const auto& [sequence, input] : batch) {
      sequences.push_back(sequence);
      inputs.push_back(input);
    }
    const Encoded encoded(inputs, std::nullopt, spec_of_inputs());
    take([&] { decoder_->remember(sequences, encoded.entries(), SignalPoll()); });
  }

  py::object step(const std::vector<std::pair<std::int64_t, py::object>>& batch, bool all_logits,
                  const py::object& into, int top_k) {
    const int vocab = decoder_->logits();
    StepOptions options{all_logits, top_k};
    FloatArray rows;
    if (!into.is_none()) {
      require(top_k == 0, "into takes all logits of a row; top_k excludes it");
      rows = to_logits(into, vocab);
      options.into = rows.mutable_data();
      options.into_rows = rows.shape(0);
    }
    std::vector<std::vector<std::int32_t>> tokens;
    for (const auto& [sequence, ids] : batch) tokens.push_back(to_tokens(ids, decoder_->spec().vocab));
    std::vector<StepEntry> entries;
    for (std::size_t i = 0; i < batch.size(); ++i)
      entries.push_back({batch[i].first, tokens[i].data(),
                         to_int(static_cast<py::ssize_t>(tokens[i].size()), "the number of tokens")});
    StepResult result = take([&] { return decoder_->step(entries, options, SignalPoll()); });
    if (options.into != nullptr) return into;
    if (top_k == 0) return to_array(std::move(result.values), {result.rows, vocab});
    return py::make_tuple(to_array(std::move(result.ids), {result.rows, top_k}),
                          to_array(std::move(result.values), {result.rows, top_k}));
  }

  void rollback(std::int64_t sequence, int n) {
    take([&] { decoder_->cache().rollback(sequence, n); });
  }
  void fork(std::int64_t from, std::int64_t to, int length) {
    take([&] { decoder_->fork(from, to, length); });
  }
  py::array save(std::int64_t sequence, int length) {
    std::vector<std::uint8_t> bytes = take([&] { return decoder_->cache().save(sequence, length); });
    const auto size = static_cast<py::ssize_t>(bytes.size());
    return to_array(std::move(bytes), {size});
  }
  void restore(std::int64_t sequence, const py::object& array, int length) {
    require(py::isinstance<py::array_t<std::uint8_t, py::array::c_style>>(array),
            "data must be an array of uint8 without gaps");
    const auto bytes = py::reinterpret_borrow<py::array_t<std::uint8_t, py::array::c_style>>(array);
    const int context = decoder_->spec().context;
    require(length <= context, length, " tokens exceed the context of ", context);
    const std::uint8_t* data = bytes.data();
    const std::int64_t size = bytes.size();
    take([&] { decoder_->cache().restore(sequence, data, size, length); });
  }
  // Whoever watches the cache does not wait for a step.
  std::int64_t kv_bytes() {
    runtime_->turn.try_take([&] { forget(); });
    return decoder_->kv_bytes();
  }
  std::int64_t kv_growth(std::int64_t sequence, int tokens, int step, int forked) {
    return take([&] { return decoder_->cache().growth(sequence, tokens, step, forked); });
  }
  // The garbage collector may drop a sequence at any moment, in a thread that is inside a call too: this never waits.
  void free(std::int64_t sequence) {
    forgotten_.add(sequence);
    runtime_->turn.try_take([&] { forget(); });
  }
  int length(std::int64_t sequence) {
    return take([&] { return decoder_->cache().length(sequence); });
  }
  int shortest(std::int64_t sequence) {
    return take([&] { return decoder_->cache().shortest(sequence); });
  }
  std::vector<std::pair<std::string, std::string>> kernels() {
    return take([&] { return decoder_->kernels(); });
  }
  std::int64_t weight_bytes() const { return decoder_->weight_bytes(); }

  py::array embed(const py::object& ids, int sequence_length) {
    if (decoder_->spec().embedding.mel) {
      const Encoded encoded({ids}, std::nullopt, decoder_->spec());
      require(sequence_length == 0, "frames are one sequence, got sequence_length ", sequence_length);
      return to_array(take([&] { return decoder_->embed(encoded.entries()[0]); }),
                      {encoded.rows(), decoder_->spec().hidden});
    }
    const std::vector<std::int32_t> tokens = to_tokens(ids, decoder_->spec().vocab);
    const int n = to_int(static_cast<py::ssize_t>(tokens.size()), "the number of tokens");
    return to_array(take([&] { return decoder_->embed(tokens.data(), n, sequence_length); }),
                    {n, decoder_->spec().hidden});
  }

  py::tuple forward_block(int index, const py::object& array, const std::vector<std::string>& names,
                          int sequence_length, const py::object& memory) {
    auto [out, inputs] = run_block(index, array, names, sequence_length, memory, true);
    const auto tokens = static_cast<py::ssize_t>(out.size()) / decoder_->spec().hidden;
    return py::make_tuple(to_array(std::move(out), {tokens, decoder_->spec().hidden}), inputs);
  }

  py::dict block_inputs(int index, const py::object& array, const std::vector<std::string>& names, int sequence_length,
                        const py::object& memory) {
    return run_block(index, array, names, sequence_length, memory, false).second;
  }

  py::array norm(const py::object& array) {
    const FloatArray hidden = to_hidden(array);
    const int tokens = to_int(hidden.shape(0), "the number of tokens");
    const float* data = hidden.data();
    return to_array(take([&] { return decoder_->normed(data, tokens); }), {tokens, decoder_->spec().hidden});
  }

  py::array head(const py::object& array) {
    const FloatArray hidden = to_hidden(array);
    const int tokens = to_int(hidden.shape(0), "the number of tokens");
    const float* data = hidden.data();
    return to_array(take([&] { return decoder_->head(data, tokens, SignalPoll()); }), {tokens, decoder_->logits()});
  }

  void set_weight(const std::string& name, const PyWeight& weight) {
    const auto packed = weight.weight;
    take([&] { decoder_->set_weight(name, packed); });
  }

  int add_adapter(const py::dict& weights, const py::dict& vectors) {
    const PackedWeights packed = to_weights(weights);
    const Vectors floats = to_vectors(vectors);
    return take([&] { return decoder_->add_adapter(packed, floats); });
  }
  void remove_adapter(int adapter) {
    take([&] { decoder_->remove_adapter(adapter); });
  }
  std::int64_t adapter_bytes(int adapter) {
    return take([&] { return decoder_->adapter_bytes(adapter); });
  }
  void choose(std::int64_t sequence, const Choices& adapters) {
    take([&] { decoder_->choose(sequence, to_mix(adapters)); });
  }

  // The encoder beside it, which takes turns with it; null where there is none.
  std::unique_ptr<PyDecoder> encoder() const {
    if (decoder_->encoder() == nullptr) return nullptr;
    return std::unique_ptr<PyDecoder>(
        new PyDecoder(config_["encoder"], runtime_, std::shared_ptr<Decoder>(decoder_, decoder_->encoder())));
  }
  const Decoder& decoder() const { return *decoder_; }  // for what never changes
  const py::dict& config() const { return config_; }

 private:
  // Runs f when it is this decoder's turn.
  template <class F>
  std::invoke_result_t<const F&> take(const F& f) {
    return runtime_->turn.take([&] {
      forget();
      return f();
    });
  }
  void forget() {
    forgotten_.take([&](std::int64_t sequence) { decoder_->free(sequence); });
  }

  std::pair<std::vector<float>, py::dict> run_block(int index, const py::object& array,
                                                    const std::vector<std::string>& names, int sequence_length,
                                                    const py::object& memory, bool whole) {
    const FloatArray hidden = to_hidden(array);
    FloatArray states;
    MemoryStates read;
    if (!memory.is_none()) {
      states = to_hidden(memory);
      read = {states.data(), to_int(states.shape(0), "the number of states")};
    }
    const int tokens = to_int(hidden.shape(0), "the number of tokens");
    std::vector<float> out(hidden.data(), hidden.data() + hidden.size());
    Captures captures;
    for (const std::string& name : names) captures[name];
    take([&] {
      decoder_->forward_block(index, out.data(), tokens, sequence_length, read, captures, whole, SignalPoll());
    });
    py::dict inputs;
    for (auto& [name, capture] : captures) {
      const py::ssize_t rows = static_cast<py::ssize_t>(capture.values.size()) / capture.cols;
      inputs[py::str(name)] = to_array(std::move(capture.values), {rows, capture.cols});
    }
    return {std::move(out), inputs};
  }

  FloatArray to_hidden(const py::object& array) const {
    FloatArray hidden = to_floats(array, "hidden");
    require(hidden.ndim() == 2 && hidden.shape(1) == decoder_->spec().hidden, "hidden must be [tokens, ",
            decoder_->spec().hidden, "]");
    return hidden;
  }

  // Of an encoder, that a decoder owns.
  PyDecoder(py::dict config, std::shared_ptr<Runtime> runtime, std::shared_ptr<Decoder> decoder)
      : config_(std::move(config)), runtime_(std::move(runtime)), decoder_(std::move(decoder)) {}

  const spec::Transformer& spec_of_inputs() const {
    const spec::Transformer& spec = decoder_->spec();
    return spec.encoder ? *spec.encoder : spec;
  }

  py::dict config_;
  std::shared_ptr<Runtime> runtime_;
  std::shared_ptr<Decoder> decoder_;
  Forgotten forgotten_;
};

}  // namespace

void register_decoder(py::module_& module) {
  using py::arg;
  py::register_exception<CacheFull>(module, "CacheFull", PyExc_RuntimeError);
  py::class_<PyDecoder>(module, "Decoder", "A transformer over packed weights with a paged KV cache.")
      .def(py::init<const py::dict&, const py::dict&, const py::dict&, int, const std::string&, const std::string&,
                    std::int64_t, const PyDecoder*, const PyDecoder*>(),
           arg("config"), arg("weights"), arg("vectors"), py::kw_only(), arg("threads") = 0, arg("kv") = "f32",
           arg("activations") = "auto", arg("kv_limit") = 0, arg("team_of") = py::none(), arg("draft_of") = py::none())
      .def("step", &PyDecoder::step, arg("batch"), arg("all_logits") = false, py::kw_only(), arg("into") = py::none(),
           arg("top_k") = 0)
      .def("encode", &PyDecoder::encode, arg("inputs"), arg("types") = py::none(), arg("adapters") = Choices())
      .def("remember", &PyDecoder::remember, arg("batch"))
      .def("fork", &PyDecoder::fork, arg("seq"), arg("to"), arg("length"))
      .def("rollback", &PyDecoder::rollback, arg("seq"), arg("n"))
      .def("shortest", &PyDecoder::shortest, arg("seq"))
      .def("free", &PyDecoder::free, arg("seq"))
      .def("save", &PyDecoder::save, arg("seq"), arg("length"))
      .def("restore", &PyDecoder::restore, arg("seq"), arg("data"), arg("length"))
      .def("length", &PyDecoder::length, arg("seq"))
      .def("embed", &PyDecoder::embed, arg("tokens"), arg("sequence_length") = 0)
      .def("forward_block", &PyDecoder::forward_block, arg("index"), arg("hidden"),
           arg("capture") = std::vector<std::string>(), arg("sequence_length") = 0, arg("memory") = py::none())
      .def("block_inputs", &PyDecoder::block_inputs, arg("index"), arg("hidden"), arg("capture"),
           arg("sequence_length") = 0, arg("memory") = py::none())
      .def("norm", &PyDecoder::norm, arg("hidden"))
      .def("head", &PyDecoder::head, arg("hidden"))
      .def("set_weight", &PyDecoder::set_weight, arg("name"), arg("weight"))
      .def("add_adapter", &PyDecoder::add_adapter, arg("weights"), arg("vectors") = py::dict())
      .def("remove_adapter", &PyDecoder::remove_adapter, arg("adapter"))
      .def("adapter_bytes", &PyDecoder::adapter_bytes, arg("adapter"))
      .def("choose", &PyDecoder::choose, arg("seq"), arg("adapters"))
      .def("kernels", &PyDecoder::kernels)
      .def(
          "kv_bytes_of",
          [](const PyDecoder& d, int tokens, int step) { return d.decoder().cache().bytes_of(tokens, step); },
          arg("tokens"), arg("step"))
      .def("kv_growth", &PyDecoder::kv_growth, arg("seq"), arg("tokens"), arg("step"), arg("forked") = 0)
      .def(
          "kv_bytes_read", [](const PyDecoder& d, int tokens) { return d.decoder().cache().read_bytes(tokens); },
          arg("tokens"))
      .def_property_readonly("vocab", [](const PyDecoder& d) { return d.decoder().spec().vocab; })
      .def_property_readonly("threads", [](const PyDecoder& d) { return d.decoder().team()->size(); })
      .def_property_readonly("kv", [](const PyDecoder& d) { return std::string(kv_name(d.decoder().cache().type())); })
      .def_property_readonly("config", &PyDecoder::config)
      .def_property_readonly("weight_bytes", &PyDecoder::weight_bytes)
      .def_property_readonly("encoder", &PyDecoder::encoder)
      .def_property_readonly("kv_bytes", &PyDecoder::kv_bytes)
      .def_property_readonly("kv_limit", [](const PyDecoder& d) { return d.decoder().cache().limit(); });
}

}  // namespace gossamer
