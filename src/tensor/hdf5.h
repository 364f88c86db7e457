#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "tensor/tensor.h"

namespace cmoe {

/// Element types of datasets, little-endian in the file.
enum class H5Type : uint8_t { i64, f64, f32, i32, u16, u8 };

template <class T>
constexpr H5Type h5_type_of() {
  if constexpr (std::is_same_v<T, int64_t>) return H5Type::i64;
  if constexpr (std::is_same_v<T, double>) return H5Type::f64;
  if constexpr (std::is_same_v<T, float>) return H5Type::f32;
  if constexpr (std::is_same_v<T, int32_t>) return H5Type::i32;
  if constexpr (std::is_same_v<T, uint16_t>) return H5Type::u16;
  if constexpr (std::is_same_v<T, uint8_t>) return H5Type::u8;
}

/// An HDF5 file of typed arrays, groups and attributes: contiguous datasets, no filters, no variable-length types.
///
/// With a communicator (Communicator::native_handle()) the file is shared: every call is collective, made by all ranks of the
/// group in the same order; only what read() and write() transfer may differ, and may be nothing. Transfers are split so that
/// one call moves at most 1 GiB (the MPI layer counts in int); the number of calls follows from the dataset's shape alone,
/// hence is the same on all ranks. Without a communicator the file is this process's own.
///
/// Errors name file, object, expected and found, with HDF5's reason. Close before the Environment goes. An H5File that dies
/// while an exception unwinds does not close a shared file, since the other ranks would be waited for: the job is about to be
/// aborted.
class H5File {
 public:
  /// Creates the file, or empties it. @throws Error.
  static H5File create(const std::filesystem::path& path, std::optional<int64_t> communicator = std::nullopt);
  /// Opens it for reading. @throws Error when it is missing, is no HDF5 file, or was cut short.
  static H5File open(const std::filesystem::path& path, std::optional<int64_t> communicator = std::nullopt);
  ~H5File();
  H5File(H5File&& other) noexcept;
  H5File& operator=(H5File&&) = delete;

  /// Writes what is buffered and closes. @throws Error, which the destructor cannot.
  void close();

  std::string name() const { return path_.string(); }
  bool exists(const std::string& object) const;
  /// Names of the groups and datasets in a group, sorted.
  std::vector<std::string> children(const std::string& group) const;
  /// @throws Error when the dataset is missing.
  Shape shape(const std::string& dataset) const;
  H5Type type(const std::string& dataset) const;

  /// Makes a group, and the groups above it.
  void create_group(const std::string& group);
  /// Makes a dataset of rank >= 1, and the groups above it.
  void create_dataset(const std::string& dataset, H5Type type, const Shape& shape);

  /// Writes the block of `count` elements per axis at `offset`; values in row-major order.
  template <class T>
  void write(const std::string& dataset, std::span<const T> values, const Shape& offset, const Shape& count) {
    transfer(dataset, h5_type_of<T>(), const_cast<T*>(values.data()), static_cast<int64_t>(values.size()), offset, count, true);
  }
  /// Reads such a block. @throws Error when the dataset is missing, holds another type, or the block is out of its bounds.
  template <class T>
  void read(const std::string& dataset, std::span<T> values, const Shape& offset, const Shape& count) const {
    transfer(dataset, h5_type_of<T>(), values.data(), static_cast<int64_t>(values.size()), offset, count, false);
  }
  /// The whole dataset. @throws Error also when its shape is not `expected`.
  template <class T>
  std::vector<T> read_all(const std::string& dataset, const Shape& expected) const {
    check_shape(dataset, expected);
    int64_t size = 1;
    for (int64_t extent : expected) size *= extent;
    std::vector<T> values(static_cast<size_t>(size));
    read(dataset, std::span<T>(values), Shape(expected.size(), 0), expected);
    return values;
  }
  template <class T>
  std::vector<T> read_all(const std::string& dataset) const {
    return read_all<T>(dataset, shape(dataset));
  }

  /// Attributes of a group or dataset ("/" is the file's own). Strings are of fixed length, at most 60,000 bytes. Setting
  /// replaces.
  void set_attribute(const std::string& object, const std::string& key, const std::string& value);
  void set_attribute(const std::string& object, const std::string& key, const char* value) {
    set_attribute(object, key, std::string(value));
  }
  void set_attribute(const std::string& object, const std::string& key, int64_t value);
  void set_attribute(const std::string& object, const std::string& key, double value);
  bool has_attribute(const std::string& object, const std::string& key) const;
  /// @throws Error naming object and key when it is missing or of another type.
  std::string string_attribute(const std::string& object, const std::string& key) const;
  int64_t integer_attribute(const std::string& object, const std::string& key) const;
  double number_attribute(const std::string& object, const std::string& key) const;

  /// Most bytes one call moves; tests lower it.
  static void set_max_transfer_bytes(int64_t bytes);

 private:
  H5File(std::filesystem::path path, int64_t id, bool shared);
  void transfer(const std::string& dataset, H5Type type, void* values, int64_t size, const Shape& offset, const Shape& count,
                bool writing) const;
  void check_shape(const std::string& dataset, const Shape& expected) const;
  int64_t open_dataset(const std::string& dataset) const;
  void write_attribute(const std::string& object, const std::string& key, int64_t type, const void* value) const;
  int64_t open_attribute(const std::string& object, const std::string& key) const;

  std::filesystem::path path_;
  int64_t id_;
  bool shared_;
  int exceptions_at_start_;
};

std::string_view name_of(H5Type type);

/// "HDF5 1.10.8 with MPI", of the library that runs.
std::string hdf5_version();

}  // namespace cmoe
