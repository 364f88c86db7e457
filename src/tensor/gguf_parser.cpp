#include "tensor/gguf_parser.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "base/error.h"

namespace cmoe {
namespace {

constexpr int kMaxDims = 4;
constexpr int kMaxNesting = 8;

enum ValueType : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

// Bytes a value takes at least; what is left of the file then bounds the length of an array.
int64_t least_bytes(uint32_t type) {
  constexpr int64_t bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8};
  return bytes[type];
}

// ggml's tensor types by number: name, weights per block, bytes per block.
struct GgmlType {
  uint32_t id;
  const char* name;
  int64_t elements, bytes;
};
constexpr GgmlType kGgmlTypes[] = {
    {0, "F32", 1, 4},        {1, "F16", 1, 2},         {2, "Q4_0", 32, 18},    {3, "Q4_1", 32, 20},    {6, "Q5_0", 32, 22},
    {7, "Q5_1", 32, 24},     {8, "Q8_0", 32, 34},      {9, "Q8_1", 32, 36},    {10, "Q2_K", 256, 84},  {11, "Q3_K", 256, 110},
    {12, "Q4_K", 256, 144},  {13, "Q5_K", 256, 176},   {14, "Q6_K", 256, 210}, {15, "Q8_K", 256, 292}, {16, "IQ2_XXS", 256, 66},
    {17, "IQ2_XS", 256, 74}, {18, "IQ3_XXS", 256, 98}, {19, "IQ1_S", 256, 50}, {20, "IQ4_NL", 32, 18}, {21, "IQ3_S", 256, 110},
    {22, "IQ2_S", 256, 82},  {23, "IQ4_XS", 256, 136}, {24, "I8", 1, 1},       {25, "I16", 1, 2},      {26, "I32", 1, 4},
    {27, "I64", 1, 8},       {28, "F64", 1, 8},        {29, "IQ1_M", 256, 56}, {30, "BF16", 1, 2},     {34, "TQ1_0", 256, 54},
    {35, "TQ2_0", 256, 66},  {39, "MXFP4", 32, 17},
};

// Reads the header front to back through a buffer; every length is checked against what is left of the file.
class Cursor {
 public:
  explicit Cursor(const InputFile& file) : file_(file) {}

  int64_t position() const { return buffer_begin_ + used_; }
  int64_t left() const { return file_.size() - position(); }

  template <class T>
  T take(const char* what) {
    T value;
    read(&value, sizeof value, what);
    return value;
  }

  std::string take_string(const char* what) {
    const auto length = take<uint64_t>(what);
    CMOE_CHECK(length <= static_cast<uint64_t>(left()), "{}: {} at byte {} says it has {} bytes; expected at most the {} left",
               file_.name(), what, position(), length, left());
    std::string text(length, '\0');
    read(text.data(), static_cast<int64_t>(length), what);
    return text;
  }

  // A number of things that take at least `bytes_each` bytes each.
  int64_t take_count(const char* what, int64_t bytes_each) {
    const auto count = take<uint64_t>(what);
    CMOE_CHECK(count <= static_cast<uint64_t>(left() / bytes_each),
               "{}: says it has {} {}; expected at most {} in the {} bytes left", file_.name(), count, what,
               left() / bytes_each, left());
    return static_cast<int64_t>(count);
  }

 private:
  void read(void* to, int64_t bytes, const char* what) {
    CMOE_CHECK(bytes <= left(), "{}: is cut short; expected {} at byte {}, found the end of the file", file_.name(), what,
               position());
    auto* out = static_cast<char*>(to);
    while (bytes > 0) {
      if (used_ == static_cast<int64_t>(buffer_.size())) refill();
      const int64_t step = std::min(bytes, static_cast<int64_t>(buffer_.size()) - used_);
      std::memcpy(out, buffer_.data() + used_, static_cast<size_t>(step));
      used_ += step;
      out += step;
      bytes -= step;
    }
  }

  void refill() {
    buffer_begin_ = position();
    used_ = 0;
    buffer_.resize(static_cast<size_t>(std::min<int64_t>(left(), 1 << 20)));
    file_.read(buffer_.data(), static_cast<int64_t>(buffer_.size()), buffer_begin_);
  }

  const InputFile& file_;
  std::vector<char> buffer_;
  int64_t buffer_begin_ = 0, used_ = 0;
};

GgufValue take_value(Cursor& cursor, uint32_t type, const std::string& where, int depth) {
  const char* what = "a metadata value";
  switch (type) {
    case u8:
      return {int64_t{cursor.take<uint8_t>(what)}};
    case i8:
      return {int64_t{cursor.take<int8_t>(what)}};
    case u16:
      return {int64_t{cursor.take<uint16_t>(what)}};
    case i16:
      return {int64_t{cursor.take<int16_t>(what)}};
    case u32:
      return {int64_t{cursor.take<uint32_t>(what)}};
    case i32:
      return {int64_t{cursor.take<int32_t>(what)}};
    case f32:
      return {double{cursor.take<float>(what)}};
    case f64:
      return {cursor.take<double>(what)};
    case i64:
      return {cursor.take<int64_t>(what)};
    case u64: {
      const auto value = cursor.take<uint64_t>(what);
      CMOE_CHECK(value <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()), "{}: the value {} is too large", where,
                 value);
      return {static_cast<int64_t>(value)};
    }
    case boolean: {
      const auto value = cursor.take<uint8_t>(what);
      CMOE_CHECK(value <= 1, "{}: a bool is {}; expected 0 or 1", where, value);
      return {value == 1};
    }
    case string:
      return {cursor.take_string("a string")};
    case array: {
      CMOE_CHECK(depth < kMaxNesting, "{}: arrays are nested deeper than {}", where, kMaxNesting);
      const auto element = cursor.take<uint32_t>(what);
      CMOE_CHECK(element <= f64, "{}: the element type {} is not known", where, element);
      const int64_t count = cursor.take_count("elements in an array", least_bytes(element));
      GgufArray values;
      values.reserve(static_cast<size_t>(count));
      for (int64_t i = 0; i < count; ++i) values.push_back(take_value(cursor, element, where, depth + 1));
      return {std::move(values)};
    }
    default:
      fail("{}: the value type {} is not known; expected 0..12", where, type);
  }
}

GgufTensor take_tensor_info(Cursor& cursor, const std::string& where) {
  const char* what = "a tensor info";
  GgufTensor tensor;
  const auto dims = cursor.take<uint32_t>(what);
  CMOE_CHECK(dims <= kMaxDims, "{}: has {} dimensions; expected at most {}", where, dims, kMaxDims);
  int64_t elements = 1;
  for (uint32_t i = 0; i < dims; ++i) {
    const auto extent = cursor.take<uint64_t>(what);
    const auto max = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
    CMOE_CHECK(extent >= 1 && extent <= max, "{}: has an extent of {}; expected at least 1", where, extent);
    CMOE_CHECK(!__builtin_mul_overflow(elements, static_cast<int64_t>(extent), &elements), "{}: is too large to be real",
               where);
    tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(extent));  // the file lists the fastest axis first
  }
  tensor.type = cursor.take<uint32_t>(what);
  const auto offset = cursor.take<uint64_t>(what);
  CMOE_CHECK(offset <= uint64_t{1} << 62, "{}: its offset {} is out of range", where, offset);
  tensor.offset = static_cast<int64_t>(offset);

  const auto* type =
      std::find_if(std::begin(kGgmlTypes), std::end(kGgmlTypes), [&](const GgmlType& t) { return t.id == tensor.type; });
  CMOE_CHECK(type != std::end(kGgmlTypes), "{}: its type {} is not known", where, tensor.type);
  tensor.type_name = type->name;
  const int64_t row = tensor.shape.empty() ? 1 : tensor.shape.back();
  CMOE_CHECK(row % type->elements == 0, "{}: has rows of {}; expected a multiple of {} for {}", where, row, type->elements,
             type->name);
  CMOE_CHECK(!__builtin_mul_overflow(elements / type->elements, type->bytes, &tensor.bytes), "{}: is too large to be real",
             where);
  return tensor;
}

int64_t alignment_of(const GgufHeader& header, const std::string& file) {
  const auto found = header.metadata.find("general.alignment");
  if (found == header.metadata.end()) return 32;
  const auto* value = std::get_if<int64_t>(&found->second.value);
  CMOE_CHECK(value && *value > 0 && *value <= 1 << 20 && (*value & (*value - 1)) == 0,
             "{}: general.alignment is not a power of two up to 2^20", file);
  return *value;
}

// Makes offsets absolute; they must be aligned, inside the file, and disjoint.
void place_tensors(GgufHeader& header, const InputFile& file, int64_t header_end) {
  const int64_t alignment = alignment_of(header, file.name());
  const int64_t data = (header_end + alignment - 1) / alignment * alignment;
  std::vector<std::pair<const std::string, GgufTensor>*> order;
  for (auto& item : header.tensors) {
    auto& [name, tensor] = item;
    CMOE_CHECK(tensor.offset % alignment == 0, "{}: tensor '{}' begins at byte {} of the data; expected a multiple of {}",
               file.name(), name, tensor.offset, alignment);
    CMOE_CHECK(data <= file.size() && tensor.bytes <= file.size() - data && tensor.offset <= file.size() - data - tensor.bytes,
               "{}: tensor '{}' lies out of the file: {} bytes from byte {} of the data, of which there are {} (cut short?)",
               file.name(), name, tensor.bytes, tensor.offset, std::max<int64_t>(file.size() - data, 0));
    tensor.offset += data;
    order.push_back(&item);
  }
  std::sort(order.begin(), order.end(), [](auto* a, auto* b) { return a->second.offset < b->second.offset; });
  for (size_t i = 1; i < order.size(); ++i) {
    const auto& [name, before] = *order[i - 1];
    CMOE_CHECK(before.offset + before.bytes <= order[i]->second.offset, "{}: tensor '{}' overlaps tensor '{}'", file.name(),
               order[i]->first, name);
  }
}

}  // namespace

GgufHeader parse_gguf_header(const InputFile& file) {
  Cursor cursor(file);
  char magic[4] = {};
  for (char& c : magic) c = cursor.take<char>("the letters GGUF");
  CMOE_CHECK(std::memcmp(magic, "GGUF", 4) == 0, "{}: does not begin with the letters GGUF; not a GGUF file", file.name());
  const auto version = cursor.take<uint32_t>("the version");
  CMOE_CHECK((version & 0xffff) != 0, "{}: is a big-endian GGUF file; expected little-endian", file.name());
  CMOE_CHECK(version == 2 || version == 3, "{}: has GGUF version {}; expected 2 or 3", file.name(), version);
  const char* count = "the number of tensors and keys";
  const auto tensors = cursor.take<uint64_t>(count), keys = cursor.take<uint64_t>(count);
  // A tensor info takes at least 24 bytes, a key with its value 13.
  const auto left = static_cast<uint64_t>(cursor.left());
  CMOE_CHECK(tensors <= left / 24 && keys <= left / 13,
             "{}: says it has {} tensors and {} keys; {} bytes are left to hold them", file.name(), tensors, keys, left);

  GgufHeader header;
  for (uint64_t i = 0; i < keys; ++i) {
    const std::string key = cursor.take_string("a metadata key");
    const auto type = cursor.take<uint32_t>("a metadata type");
    const std::string where = fmt::format("{}: metadata '{}'", file.name(), key);
    CMOE_CHECK(!header.metadata.contains(key), "{}: occurs twice", where);
    header.metadata.emplace(key, take_value(cursor, type, where, 0));
  }
  for (uint64_t i = 0; i < tensors; ++i) {
    const std::string name = cursor.take_string("a tensor name");
    const std::string where = fmt::format("{}: tensor '{}'", file.name(), name);
    CMOE_CHECK(!header.tensors.contains(name), "{}: occurs twice", where);
    header.tensors.emplace(name, take_tensor_info(cursor, where));
  }
  place_tensors(header, file, cursor.position());
  return header;
}

}  // namespace cmoe
