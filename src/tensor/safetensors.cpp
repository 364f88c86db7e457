#include "tensor/safetensors.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "base/error.h"
#include "tensor/strict_json.h"

namespace cmoe {
namespace {

using nlohmann::json;

constexpr int64_t kMaxHeaderBytes = 100'000'000;  // the limit of the format's own library

const std::map<std::string, int64_t>& dtype_sizes() {
  static const std::map<std::string, int64_t> sizes = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"U16", 2}, {"I16", 2}, {"F16", 2},
      {"BF16", 2}, {"U32", 4}, {"I32", 4}, {"F32", 4},     {"U64", 8},     {"I64", 8}, {"F64", 8}, {"C64", 8}};
  return sizes;
}

int64_t non_negative_integer(const json& value, const std::string& where, const char* what) {
  CMOE_CHECK(value.is_number_unsigned() && value.get<uint64_t>() <= uint64_t{1} << 62, "{}: {} is {}; expected an integer >= 0",
             where, what, value.dump());
  return value.get<int64_t>();
}

const json& field(const json& entry, const char* key, const std::string& where) {
  CMOE_CHECK(entry.is_object() && entry.contains(key), "{}: has no '{}'; expected dtype, shape and data_offsets", where, key);
  return entry.at(key);
}

SafetensorsEntry parse_entry(const json& header, const std::string& where, int64_t data_begin, int64_t data_bytes) {
  SafetensorsEntry entry;
  const json& dtype = field(header, "dtype", where);
  CMOE_CHECK(dtype.is_string() && dtype_sizes().contains(dtype.get<std::string>()), "{}: dtype {} is not known", where,
             dtype.dump());
  entry.dtype = dtype.get<std::string>();
  int64_t bytes = dtype_sizes().at(entry.dtype);

  const json& shape = field(header, "shape", where);
  CMOE_CHECK(shape.is_array(), "{}: shape is {}; expected a list of integers", where, shape.dump());
  for (const json& extent : shape) entry.shape.push_back(non_negative_integer(extent, where, "an extent of the shape"));
  // An empty tensor is legal whatever its other extents are.
  if (std::find(entry.shape.begin(), entry.shape.end(), 0) != entry.shape.end()) bytes = 0;
  for (int64_t extent : entry.shape) {
    if (bytes == 0) break;
    CMOE_CHECK(!__builtin_mul_overflow(bytes, extent, &bytes), "{}: shape {} is too large to be real", where,
               to_string(entry.shape));
  }
  entry.bytes = bytes;

  const json& offsets = field(header, "data_offsets", where);
  CMOE_CHECK(offsets.is_array() && offsets.size() == 2, "{}: data_offsets is {}; expected [begin, end]", where, offsets.dump());
  const int64_t begin = non_negative_integer(offsets[0], where, "data_offsets begin");
  const int64_t end = non_negative_integer(offsets[1], where, "data_offsets end");
  CMOE_CHECK(begin <= end && end <= data_bytes, "{}: data_offsets [{}, {}] are out of range; the file holds {} bytes of data",
             where, begin, end, data_bytes);
  CMOE_CHECK(end - begin == bytes, "{}: takes {} bytes by its offsets; expected {} for {} {}", where, end - begin, bytes,
             entry.dtype, to_string(entry.shape));
  entry.offset = data_begin + begin;
  return entry;
}

// Tensors, in the order of their offsets, must cover the data exactly.
void check_layout(const std::map<std::string, SafetensorsEntry>& entries, const std::string& file, int64_t begin, int64_t end) {
  std::vector<const std::pair<const std::string, SafetensorsEntry>*> order;
  for (const auto& item : entries) order.push_back(&item);
  std::sort(order.begin(), order.end(), [](auto* a, auto* b) {
    return std::pair(a->second.offset, a->second.bytes) < std::pair(b->second.offset, b->second.bytes);
  });
  int64_t expected = begin;
  for (const auto* item : order) {
    const auto& [tensor, entry] = *item;
    CMOE_CHECK(entry.offset >= expected, "{}: tensor '{}' overlaps another: it begins at byte {} of the data, expected {}",
               file, tensor, entry.offset - begin, expected - begin);
    CMOE_CHECK(entry.offset == expected,
               "{}: there is a hole before tensor '{}': it begins at byte {} of the data, expected {}", file, tensor,
               entry.offset - begin, expected - begin);
    expected = entry.offset + entry.bytes;
  }
  CMOE_CHECK(expected == end, "{}: holds {} bytes of data, but its tensors cover {}", file, end - begin, expected - begin);
}

}  // namespace

SafetensorsFile::SafetensorsFile(std::filesystem::path path) : file_(std::move(path)) {
  const std::string file = name();
  CMOE_CHECK(file_.size() >= 8, "{}: is cut short; expected at least 8 bytes of safetensors header, found {}", file,
             file_.size());
  uint64_t header_bytes = 0;
  file_.read(&header_bytes, 8, 0);
  const int64_t room = std::min<int64_t>(file_.size() - 8, kMaxHeaderBytes);
  CMOE_CHECK(header_bytes <= static_cast<uint64_t>(room),
             "{}: says its header has {} bytes; expected at most {} (cut short, or no safetensors file?)", file, header_bytes,
             room);
  std::string text(header_bytes, '\0');
  file_.read(text.data(), static_cast<int64_t>(header_bytes), 8);
  const int64_t data_begin = 8 + static_cast<int64_t>(header_bytes);

  const json header = parse_strict_json(text, file + ": header");
  CMOE_CHECK(header.is_object(), "{}: the header is not a JSON object", file);
  for (const auto& [key, value] : header.items()) {
    if (key == "__metadata__") {
      CMOE_CHECK(value.is_object(), "{}: __metadata__ is not a JSON object", file);
      for (const auto& [name, text_value] : value.items()) {
        CMOE_CHECK(text_value.is_string(), "{}: __metadata__ '{}' is not a string", file, name);
        metadata_[name] = text_value.get<std::string>();
      }
    } else {
      entries_[key] = parse_entry(value, fmt::format("{}: tensor '{}'", file, key), data_begin, file_.size() - data_begin);
    }
  }
  check_layout(entries_, file, data_begin, file_.size());
}

const SafetensorsEntry& SafetensorsFile::entry(const std::string& tensor) const {
  const auto found = entries_.find(tensor);
  CMOE_CHECK(found != entries_.end(), "{}: tensor '{}' is missing", name(), tensor);
  return found->second;
}

void SafetensorsFile::read_bytes(const std::string& tensor, int64_t begin, int64_t bytes, void* to) const {
  const SafetensorsEntry& found = entry(tensor);
  CMOE_CHECK(begin >= 0 && bytes >= 0 && begin <= found.bytes - bytes, "{}: tensor '{}' has {} bytes; expected {} from byte {}",
             this->name(), tensor, found.bytes, bytes, begin);
  file_.read(to, bytes, found.offset + begin);
}

StoredType SafetensorsFile::stored_type(const std::string& tensor) const {
  const std::string& dtype = entry(tensor).dtype;
  for (StoredType type : {StoredType::F32, StoredType::F16, StoredType::BF16}) {
    if (dtype == name_of(type)) return type;
  }
  fail("{}: tensor '{}' is stored as {}; expected F32, F16 or BF16", name(), tensor, dtype);
}

Tensor SafetensorsFile::read(const std::string& tensor, DType as) const {
  const SafetensorsEntry& found = entry(tensor);
  return read_stored(file_, found.offset, stored_type(tensor), found.shape, as);
}

SafetensorsIndex read_safetensors_index(const std::filesystem::path& path) {
  const std::string file = path.string();
  const json text = parse_strict_json(read_text_file(path), file);
  CMOE_CHECK(text.is_object() && text.contains("weight_map") && text["weight_map"].is_object(),
             "{}: has no 'weight_map' object; expected an index of safetensors shards", file);
  SafetensorsIndex index;
  for (const auto& [tensor, shard] : text["weight_map"].items()) {
    CMOE_CHECK(shard.is_string(), "{}: weight_map '{}' is {}; expected a file name", file, tensor, shard.dump());
    const auto name = shard.get<std::string>();
    CMOE_CHECK(!name.empty() && name.find('/') == std::string::npos && name != "." && name != "..",
               "{}: weight_map '{}' names '{}'; expected a file in the same folder", file, tensor, name);
    index.weight_map[tensor] = name;
  }
  if (text.contains("metadata") && text["metadata"].is_object() && text["metadata"].contains("total_size")) {
    const json& total = text["metadata"]["total_size"];
    if (total.is_number_unsigned()) index.total_size = total.get<int64_t>();
  }
  return index;
}

std::string to_json_text(const SafetensorsIndex& index) {
  return json{{"metadata", {{"total_size", index.total_size}}}, {"weight_map", index.weight_map}}.dump(2) + "\n";
}

}  // namespace cmoe
