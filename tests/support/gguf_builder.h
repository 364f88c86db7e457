#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace cmoe {

/// Writes GGUF bytes by hand, right or wrong.
class GgufBuilder {
 public:
  uint32_t version = 3;
  uint64_t alignment = 32;

  template <class T>
  static std::string bytes_of(T value) {
    std::string bytes(sizeof value, '\0');
    std::memcpy(bytes.data(), &value, sizeof value);
    return bytes;
  }
  static std::string text(const std::string& value) { return bytes_of<uint64_t>(value.size()) + value; }

  /// A key with a value that is encoded already.
  GgufBuilder& raw(const std::string& key, uint32_t type, const std::string& value) {
    keys_ += text(key) + bytes_of(type) + value;
    ++key_count_;
    return *this;
  }
  GgufBuilder& key(const std::string& name, uint32_t value) { return raw(name, 4, bytes_of(value)); }
  GgufBuilder& key(const std::string& name, float value) { return raw(name, 6, bytes_of(value)); }
  GgufBuilder& key(const std::string& name, const std::string& value) { return raw(name, 8, text(value)); }
  GgufBuilder& key(const std::string& name, const std::vector<std::string>& values) {
    std::string bytes = bytes_of<uint32_t>(8) + bytes_of<uint64_t>(values.size());
    for (const std::string& value : values) bytes += text(value);
    return raw(name, 9, bytes);
  }

  /// `dims` in the file's order: the fastest first.
  GgufBuilder& tensor(const std::string& name, const std::vector<uint64_t>& dims, uint32_t type, const std::string& data) {
    info(name, dims, type, data_.size());
    data_ += data;
    data_.resize((data_.size() + alignment - 1) / alignment * alignment, '\0');
    return *this;
  }
  GgufBuilder& f32(const std::string& name, const std::vector<uint64_t>& dims, const std::vector<float>& values) {
    std::string data(values.size() * 4, '\0');
    std::memcpy(data.data(), values.data(), data.size());
    return tensor(name, dims, 0, data);
  }
  /// Only the entry in the list of tensors.
  GgufBuilder& info(const std::string& name, const std::vector<uint64_t>& dims, uint32_t type, uint64_t offset) {
    infos_ += text(name) + bytes_of(static_cast<uint32_t>(dims.size()));
    for (uint64_t dim : dims) infos_ += bytes_of(dim);
    infos_ += bytes_of(type) + bytes_of(offset);
    ++tensor_count_;
    return *this;
  }

  std::string file() const {
    std::string bytes = "GGUF" + bytes_of(version) + bytes_of(tensor_count_) + bytes_of(key_count_) + keys_ + infos_;
    bytes.resize((bytes.size() + alignment - 1) / alignment * alignment, '\0');
    return bytes + data_;
  }

 private:
  std::string keys_, infos_, data_;
  uint64_t key_count_ = 0, tensor_count_ = 0;
};

}  // namespace cmoe
