#include "tensor/gguf.h"

#include <type_traits>
#include <utility>

#include "base/error.h"
#include "tensor/gguf_parser.h"

namespace cmoe {
namespace {

const char* kind(const GgufValue& value) {
  constexpr const char* kinds[] = {"an integer", "a number", "a bool", "a string", "an array"};
  return kinds[value.value.index()];
}

template <class T>
const char* wanted() {
  if constexpr (std::is_same_v<T, int64_t>) return "an integer";
  if constexpr (std::is_same_v<T, double>) return "a number";
  if constexpr (std::is_same_v<T, bool>) return "a bool";
  return "a string";
}

template <class T>
T convert(const GgufValue& value, const std::string& file, const std::string& key) {
  if (const T* exact = std::get_if<T>(&value.value)) return *exact;
  if constexpr (std::is_same_v<T, double>) {
    if (const auto* integer = std::get_if<int64_t>(&value.value)) return static_cast<double>(*integer);
  }
  fail("{}: metadata '{}' holds {}; expected {}", file, key, kind(value), wanted<T>());
}

template <class T>
std::optional<T> find(const GgufFile& file, const std::string& key) {
  const auto found = file.metadata().find(key);
  if (found == file.metadata().end()) return std::nullopt;
  return convert<T>(found->second, file.name(), key);
}

template <class T>
std::optional<std::vector<T>> find_array(const GgufFile& file, const std::string& key) {
  const auto found = file.metadata().find(key);
  if (found == file.metadata().end()) return std::nullopt;
  const auto* array = std::get_if<GgufArray>(&found->second.value);
  CMOE_CHECK(array, "{}: metadata '{}' holds {}; expected an array", file.name(), key, kind(found->second));
  std::vector<T> values;
  values.reserve(array->size());
  for (const GgufValue& value : *array) values.push_back(convert<T>(value, file.name(), key));
  return values;
}

template <class T>
T require(std::optional<T> value, const GgufFile& file, const std::string& key) {
  CMOE_CHECK(value.has_value(), "{}: metadata '{}' is missing", file.name(), key);
  return *std::move(value);
}

}  // namespace

GgufFile::GgufFile(std::filesystem::path path) : file_(std::move(path)) {
  GgufHeader header = parse_gguf_header(file_);
  metadata_ = std::move(header.metadata);
  tensors_ = std::move(header.tensors);
}

const GgufTensor& GgufFile::tensor(const std::string& name) const {
  const auto found = tensors_.find(name);
  CMOE_CHECK(found != tensors_.end(), "{}: tensor '{}' is missing", this->name(), name);
  return found->second;
}

StoredType GgufFile::stored_type(const std::string& name) const {
  const GgufTensor& found = tensor(name);
  for (StoredType type :
       {StoredType::F32, StoredType::F16, StoredType::BF16, StoredType::Q8_0, StoredType::Q4_0, StoredType::Q4_1}) {
    if (found.type_name == name_of(type)) return type;
  }
  fail("{}: tensor '{}' is stored as {}; expected F32, F16, BF16, Q8_0, Q4_0 or Q4_1 (requantise the file to one of these)",
       this->name(), name, found.type_name);
}

Tensor GgufFile::read(const std::string& name, DType as) const {
  const GgufTensor& found = tensor(name);
  return read_stored(file_, found.offset, stored_type(name), found.shape, as);
}

void GgufFile::read_bytes(const std::string& name, int64_t begin, int64_t bytes, void* to) const {
  const GgufTensor& found = tensor(name);
  CMOE_CHECK(begin >= 0 && bytes >= 0 && begin <= found.bytes - bytes, "{}: tensor '{}' has {} bytes; expected {} from byte {}",
             this->name(), name, found.bytes, bytes, begin);
  file_.read(to, bytes, found.offset + begin);
}

std::optional<std::string> GgufFile::find_string(const std::string& key) const { return find<std::string>(*this, key); }
std::optional<int64_t> GgufFile::find_integer(const std::string& key) const { return find<int64_t>(*this, key); }
std::optional<double> GgufFile::find_number(const std::string& key) const { return find<double>(*this, key); }
std::optional<bool> GgufFile::find_bool(const std::string& key) const { return find<bool>(*this, key); }
std::optional<std::vector<std::string>> GgufFile::find_strings(const std::string& key) const {
  return find_array<std::string>(*this, key);
}
std::optional<std::vector<int64_t>> GgufFile::find_integers(const std::string& key) const {
  return find_array<int64_t>(*this, key);
}
std::optional<std::vector<double>> GgufFile::find_numbers(const std::string& key) const {
  return find_array<double>(*this, key);
}

std::string GgufFile::string(const std::string& key) const { return require(find_string(key), *this, key); }
int64_t GgufFile::integer(const std::string& key) const { return require(find_integer(key), *this, key); }
double GgufFile::number(const std::string& key) const { return require(find_number(key), *this, key); }

}  // namespace cmoe
