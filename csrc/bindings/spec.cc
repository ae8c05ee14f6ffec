#include "bindings/spec.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <type_traits>
#include <variant>
#include <vector>

#include "kernels/vectors.h"

namespace gossamer {
namespace {

// A word out of a description, as errors quote it.
std::string quoted(const py::handle& value) { return "'" + py::str(value).cast<std::string>().substr(0, 80) + "'"; }

template <class T>
void read(const py::handle& value, const std::string& path, T& to);

// Reads the fields that a part's `visit` names, and refuses others.
class PartReader {
 public:
  PartReader(const py::handle& value, std::string path, const char* part) : path_(std::move(path)) {
    require(py::isinstance<py::dict>(value), path_, " must be an object");
    values_ = py::reinterpret_borrow<py::dict>(value);
    if (part != nullptr) known_.emplace_back("part");
  }

  template <class T>
  void operator()(const char* name, T& to) {
    known_.emplace_back(name);
    require(values_.contains(name), path_, ".", name, " is missing");
    read(values_[name], path_ + "." + name, to);
  }

  void refuse_others() const {
    for (const auto& [key, unused] : values_) {
      bool found = false;
      for (const std::string& name : known_)
        found = found || (py::isinstance<py::str>(key) && key.equal(py::str(name)));
      require(found, path_, ": ", quoted(key), " is not known; there are: ", names());
    }
  }

 private:
  std::string names() const {
    std::string text;
    for (const std::string& name : known_) text += (text.empty() ? "" : ", ") + name;
    return text;
  }

  py::dict values_;
  std::string path_;
  std::vector<std::string> known_;
};

template <class T, class = void>
struct PartName {
  static constexpr const char* value = nullptr;
};
template <class T>
struct PartName<T, std::void_t<decltype(T::kPart)>> {
  static constexpr const char* value = T::kPart;
};

// A value of each kind that a field may have.
template <class T>
struct Reader {  // a part
  static void read(const py::handle& value, const std::string& path, T& to) {
    PartReader reader(value, path, PartName<T>::value);
    to.visit(reader);
    reader.refuse_others();
  }
};

template <>
struct Reader<bool> {
  static void read(const py::handle& value, const std::string& path, bool& to) {
    require(py::isinstance<py::bool_>(value), path, " must be true or false, got ", quoted(value));
    to = value.cast<bool>();
  }
};

template <>
struct Reader<int> {
  static void read(const py::handle& value, const std::string& path, int& to) {
    require(py::isinstance<py::int_>(value) && !py::isinstance<py::bool_>(value), path, " must be an integer, got ",
            quoted(value));
    int overflow = 0;
    const long long wide = PyLong_AsLongLongAndOverflow(value.ptr(), &overflow);
    require(overflow == 0 && wide >= INT32_MIN && wide <= INT32_MAX, path, " is out of range: ", quoted(value));
    to = static_cast<int>(wide);
  }
};

template <>
struct Reader<float> {
  static void read(const py::handle& value, const std::string& path, float& to) {
    const bool fair =
        py::isinstance<py::float_>(value) || (py::isinstance<py::int_>(value) && !py::isinstance<py::bool_>(value));
    require(fair, path, " must be a number, got ", quoted(value));
    const double wide = PyFloat_AsDouble(value.ptr());
    if (PyErr_Occurred() != nullptr) {
      PyErr_Clear();
      throw InvalidArgument(concat(path, " is out of range"));
    }
    to = static_cast<float>(wide);
  }
};

template <>
struct Reader<std::string> {
  static void read(const py::handle& value, const std::string& path, std::string& to) {
    require(py::isinstance<py::str>(value), path, " must be a word, got ", quoted(value));
    to = value.cast<std::string>();
  }
};

template <class T>
struct Reader<std::vector<T>> {
  static void read(const py::handle& value, const std::string& path, std::vector<T>& to) {
    require(py::isinstance<py::list>(value) || py::isinstance<py::tuple>(value), path, " must be a list");
    const auto items = py::reinterpret_borrow<py::sequence>(value);
    for (std::size_t i = 0; i < items.size(); ++i)
      Reader<T>::read(items[i], path + "[" + std::to_string(i) + "]", to.emplace_back());
  }
};

template <class T>
struct Reader<std::optional<T>> {
  static void read(const py::handle& value, const std::string& path, std::optional<T>& to) {
    if (!value.is_none()) Reader<T>::read(value, path, to.emplace());
  }
};

template <class T>
struct Reader<std::shared_ptr<const T>> {
  static void read(const py::handle& value, const std::string& path, std::shared_ptr<const T>& to) {
    if (value.is_none()) return;
    auto part = std::make_shared<T>();
    Reader<T>::read(value, path, *part);
    to = std::move(part);
  }
};

template <class... Parts>
struct Reader<std::variant<Parts...>> {
  static void read(const py::handle& value, const std::string& path, std::variant<Parts...>& to) {
    require(py::isinstance<py::dict>(value), path, " must be an object");
    const auto values = py::reinterpret_borrow<py::dict>(value);
    require(values.contains("part"), path, ".part is missing");
    const py::object part = values["part"];
    const bool found = (try_part<Parts>(part, value, path, to) || ...);
    std::string known;
    ((known += (known.empty() ? "" : ", ") + std::string(Parts::kPart)), ...);
    require(found, path, ": part ", quoted(part), " is not known; there are: ", known);
  }

 private:
  template <class Part>
  static bool try_part(const py::object& part, const py::handle& value, const std::string& path,
                       std::variant<Parts...>& to) {
    if (!py::isinstance<py::str>(part) || !part.equal(py::str(Part::kPart))) return false;
    Reader<Part>::read(value, path, to.template emplace<Part>());
    return true;
  }
};

// The number of a word in a list of them.
template <class List>
std::size_t read_word(const py::handle& value, const std::string& path, const List& words) {
  std::string known;
  std::size_t number = 0;
  for (const char* word : words) {
    if (py::isinstance<py::str>(value) && value.equal(py::str(word))) return number;
    known += (known.empty() ? "'" : " or '") + std::string(word) + "'";
    ++number;
  }
  throw InvalidArgument(concat(path, " must be ", known, ", got ", quoted(value)));
}

template <class Kernel>
const Kernel* read_kernel(const py::handle& value, const std::string& path, const Kernel* table) {
  std::vector<const char*> names;
  for (const Kernel* kernel = table; kernel->name != nullptr; ++kernel) names.push_back(kernel->name);
  return table + read_word(value, path, names);
}

template <>
struct Reader<const NormKernel*> {
  static void read(const py::handle& value, const std::string& path, const NormKernel*& to) {
    to = read_kernel(value, path, vector_kernels().norms);
  }
};

template <>
struct Reader<const ActivationKernels*> {
  static void read(const py::handle& value, const std::string& path, const ActivationKernels*& to) {
    to = read_kernel(value, path, vector_kernels().activations);
  }
};

template <class T>
void read(const py::handle& value, const std::string& path, T& to) {
  if constexpr (std::is_enum_v<T>)
    to = static_cast<T>(read_word(value, path, spec::Words<T>::list));
  else
    Reader<T>::read(value, path, to);
}

}  // namespace

spec::Transformer to_spec(const py::dict& values) {
  spec::Transformer transformer;
  Reader<spec::Transformer>::read(values, "transformer", transformer);
  return transformer;
}

}  // namespace gossamer
