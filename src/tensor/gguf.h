#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "tensor/dequantize.h"
#include "tensor/input_file.h"
#include "tensor/tensor.h"

namespace cmoe {

/// A metadata value of a GGUF file. Integers of all widths are int64 (u64 beyond 2^63 is refused), f32 and f64 are double.
struct GgufValue;
using GgufArray = std::vector<GgufValue>;
struct GgufValue {
  std::variant<int64_t, double, bool, std::string, GgufArray> value;
};

struct GgufTensor {
  uint32_t type = 0;      ///< ggml's number
  std::string type_name;  ///< "Q4_1"
  Shape shape;            ///< row-major: the reverse of the file's order
  int64_t offset = 0;     ///< of its first byte in the file
  int64_t bytes = 0;
};

/// A GGUF file, version 2 or 3, little-endian:
/// `"GGUF" | u32 version | u64 tensors | u64 keys | key-value pairs | tensor infos | padding | data`.
///
/// Nothing in it is trusted: counts and string lengths against the bytes that are left, types, duplicate names, alignment,
/// offsets in range and without overlap. Errors name file, key or tensor, expected and found.
class GgufFile {
 public:
  /// Reads and checks everything but the data. @throws Error.
  explicit GgufFile(std::filesystem::path path);

  std::string name() const { return file_.name(); }
  const std::map<std::string, GgufTensor>& tensors() const { return tensors_; }
  const std::map<std::string, GgufValue>& metadata() const { return metadata_; }
  bool contains(const std::string& tensor) const { return tensors_.contains(tensor); }
  /// @throws Error naming file and tensor when it is missing.
  const GgufTensor& tensor(const std::string& name) const;
  /// Reads one tensor, dequantised, as f32 or bf16. @throws Error when it is missing or of a type that has no decoder here.
  Tensor read(const std::string& tensor, DType as) const;
  /// Reads `bytes` bytes of the tensor as they are stored, from its byte `begin` on. @throws Error when it is missing or
  /// shorter.
  void read_bytes(const std::string& tensor, int64_t begin, int64_t bytes, void* to) const;
  /// The type `tensor` is read from. @throws Error naming tensor and type when there is no decoder.
  StoredType stored_type(const std::string& tensor) const;

  // Metadata by key: nothing when the key is absent. @throws Error naming file and key when it holds another type.
  std::optional<std::string> find_string(const std::string& key) const;
  std::optional<int64_t> find_integer(const std::string& key) const;
  std::optional<double> find_number(const std::string& key) const;  ///< an integer is a number too
  std::optional<bool> find_bool(const std::string& key) const;
  std::optional<std::vector<std::string>> find_strings(const std::string& key) const;
  std::optional<std::vector<int64_t>> find_integers(const std::string& key) const;
  std::optional<std::vector<double>> find_numbers(const std::string& key) const;
  // The same for keys that must be there. @throws Error also when the key is absent.
  std::string string(const std::string& key) const;
  int64_t integer(const std::string& key) const;
  double number(const std::string& key) const;

 private:
  InputFile file_;
  std::map<std::string, GgufValue> metadata_;
  std::map<std::string, GgufTensor> tensors_;
};

}  // namespace cmoe
