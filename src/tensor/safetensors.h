#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "tensor/dequantize.h"
#include "tensor/input_file.h"
#include "tensor/tensor.h"

namespace cmoe {

/// One tensor of a safetensors header, checked.
struct SafetensorsEntry {
  std::string dtype;  ///< the file's word: "F32", "BF16", ...
  Shape shape;
  int64_t offset = 0;  ///< of its first byte in the file
  int64_t bytes = 0;
};

/// A safetensors file: `u64 header length | JSON header | data`, little-endian, row-major, without holes.
///
/// Nothing in the header is trusted: length against the file's size, JSON, duplicate names, dtypes, shape products, offsets in
/// range, size = product * dtype, neither overlaps nor holes. Errors name file, tensor, expected and found.
class SafetensorsFile {
 public:
  /// Reads and checks the header; no data. @throws Error.
  explicit SafetensorsFile(std::filesystem::path path);

  std::string name() const { return file_.name(); }
  const std::map<std::string, SafetensorsEntry>& entries() const { return entries_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  bool contains(const std::string& tensor) const { return entries_.contains(tensor); }
  /// @throws Error naming file and tensor when it is missing.
  const SafetensorsEntry& entry(const std::string& tensor) const;
  /// Reads one tensor as f32 or bf16. @throws Error when it is missing or its dtype is not F32, F16 or BF16.
  Tensor read(const std::string& tensor, DType as) const;
  /// Reads `bytes` bytes of the tensor as they are stored, from its byte `begin` on. @throws Error when it is missing or
  /// shorter.
  void read_bytes(const std::string& tensor, int64_t begin, int64_t bytes, void* to) const;
  /// The type `tensor` is read from. @throws Error as read().
  StoredType stored_type(const std::string& tensor) const;

 private:
  InputFile file_;
  std::map<std::string, SafetensorsEntry> entries_;
  std::map<std::string, std::string> metadata_;
};

/// Which shard holds which tensor: `model.safetensors.index.json`.
struct SafetensorsIndex {
  std::map<std::string, std::string> weight_map;  ///< tensor -> file name beside the index
  int64_t total_size = 0;                         ///< bytes of all tensors
};

/// @throws Error when it is no index, or names a file outside its folder.
SafetensorsIndex read_safetensors_index(const std::filesystem::path& path);
/// The text of an index file.
std::string to_json_text(const SafetensorsIndex& index);

}  // namespace cmoe
