#include "tensor/hdf5.h"

// Brings mpi.h with it, for the type of a communicator; all communication is HDF5's own.
#define OMPI_SKIP_MPICXX 1
#include <hdf5.h>
#ifndef H5_HAVE_PARALLEL
#error "HDF5 without MPI support; install libhdf5-openmpi-dev"
#endif

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <utility>

#include "base/error.h"
#include "tensor/abandoned_file.h"

namespace cmoe {
namespace {

constexpr int64_t kMaxAttributeBytes = 60000;  // an object header message holds 64 KiB
std::atomic<int64_t> max_transfer_bytes{int64_t{1} << 30};

// Owns one HDF5 identifier.
class Handle {
 public:
  using Close = herr_t (*)(hid_t);
  Handle(hid_t id, Close close) : id_(id), close_(close) {}
  ~Handle() {
    if (id_ >= 0) close_(id_);
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  hid_t get() const { return id_; }
  hid_t release() { return std::exchange(id_, -1); }

 private:
  hid_t id_;
  Close close_;
};

// HDF5's own account of the failure: the innermost entry of its error stack.
std::string reason() {
  std::string text;
  const auto first = [](unsigned, const H5E_error2_t* error, void* out) -> herr_t {
    if (error->desc) static_cast<std::string*>(out)->assign(error->desc);
    return 1;  // stop
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, first, &text);
  H5Eclear2(H5E_DEFAULT);
  // "file write failed: time = ...\n, filename = ..., error message = 'No space left on device', buf = ...": what and why.
  constexpr std::string_view kWhy = "error message = '";
  if (const size_t why = text.find(kWhy), what = text.find(": time = "); why < text.size() && what < why) {
    const size_t begin = why + kWhy.size();
    text = text.substr(0, what) + ": " + text.substr(begin, text.find('\'', begin) - begin);
  }
  return text.empty() ? "no reason given" : text;
}

// Once, before the first call: no printing, and no closing of files behind our back at exit (an abort must not wait for ranks).
void start_library() {
  static std::once_flag once;
  std::call_once(once, [] {
    H5dont_atexit();
    H5open();
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  });
}

hid_t file_type(H5Type type) {
  switch (type) {
    case H5Type::i64:
      return H5T_STD_I64LE;
    case H5Type::f64:
      return H5T_IEEE_F64LE;
    case H5Type::f32:
      return H5T_IEEE_F32LE;
    case H5Type::i32:
      return H5T_STD_I32LE;
    case H5Type::u16:
      return H5T_STD_U16LE;
    case H5Type::u8:
      return H5T_STD_U8LE;
  }
  return -1;
}

int64_t bytes_of(H5Type type) { return static_cast<int64_t>(H5Tget_size(file_type(type))); }

std::vector<hsize_t> extents(const Shape& shape) { return {shape.begin(), shape.end()}; }

// Properties of a file, with the communicator it is shared over.
hid_t access_properties(std::optional<int64_t> communicator) {
  const hid_t properties = H5Pcreate(H5P_FILE_ACCESS);
  if (communicator) {
    H5Pset_fapl_mpio(properties, MPI_Comm_f2c(static_cast<MPI_Fint>(*communicator)), MPI_INFO_NULL);
    H5Pset_all_coll_metadata_ops(properties, true);
    H5Pset_coll_metadata_write(properties, true);
  }
  return properties;
}

Handle creating_groups_above() {
  const hid_t properties = H5Pcreate(H5P_LINK_CREATE);
  H5Pset_create_intermediate_group(properties, 1);
  return {properties, H5Pclose};
}

Shape shape_of(hid_t dataset) {
  const Handle space(H5Dget_space(dataset), H5Sclose);
  std::vector<hsize_t> dims(static_cast<size_t>(std::max(H5Sget_simple_extent_ndims(space.get()), 0)));
  H5Sget_simple_extent_dims(space.get(), dims.data(), nullptr);
  return {dims.begin(), dims.end()};
}

std::optional<H5Type> type_of(hid_t dataset) {
  const Handle stored(H5Dget_type(dataset), H5Tclose);
  for (H5Type type : {H5Type::i64, H5Type::f64, H5Type::f32, H5Type::i32, H5Type::u16, H5Type::u8}) {
    if (H5Tequal(stored.get(), file_type(type)) > 0) return type;
  }
  return std::nullopt;
}

}  // namespace

std::string_view name_of(H5Type type) {
  constexpr std::string_view names[] = {"i64", "f64", "f32", "i32", "u16", "u8"};
  return names[static_cast<int>(type)];
}

void H5File::set_max_transfer_bytes(int64_t bytes) { max_transfer_bytes = bytes; }

H5File::H5File(std::filesystem::path path, int64_t id, bool shared)
    : path_(std::move(path)), id_(id), shared_(shared), exceptions_at_start_(std::uncaught_exceptions()) {}

H5File::H5File(H5File&& other) noexcept
    : path_(std::move(other.path_)),
      id_(std::exchange(other.id_, -1)),
      shared_(other.shared_),
      exceptions_at_start_(other.exceptions_at_start_) {}

H5File::~H5File() {
  const bool unwinding = std::uncaught_exceptions() > exceptions_at_start_;
  if (id_ < 0) return;
  if (unwinding) redirect_into_memory(path_);
  // Closing a shared file is collective: when one rank alone gives up, it waits for nobody. MPI's end closes it.
  if (!shared_ || !unwinding) H5Fclose(id_);
}

void H5File::close() {
  if (id_ < 0) return;
  if (H5Fflush(id_, H5F_SCOPE_LOCAL) < 0)
    fail_internal("{}: writing the last of it failed: {}{}", name(), reason(), full_disk_hint(path_));
  if (H5Fclose(std::exchange(id_, -1)) < 0) fail_internal("{}: closing failed: {}{}", name(), reason(), full_disk_hint(path_));
}

H5File H5File::create(const std::filesystem::path& path, std::optional<int64_t> communicator) {
  start_library();
  const Handle access(access_properties(communicator), H5Pclose);
  const hid_t id = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access.get());
  CMOE_CHECK(id >= 0, "{}: cannot be created: {}", path.string(), reason());
  return H5File(path, id, communicator.has_value());
}

H5File H5File::open(const std::filesystem::path& path, std::optional<int64_t> communicator) {
  start_library();
  CMOE_CHECK(std::filesystem::exists(path), "{}: no such file; expected an HDF5 file", path.string());
  const Handle access(access_properties(communicator), H5Pclose);
  const hid_t id = H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get());
  CMOE_CHECK(id >= 0, "{}: is not a whole HDF5 file: {}", path.string(), reason());
  return H5File(path, id, communicator.has_value());
}

bool H5File::exists(const std::string& object) const {
  // H5Lexists wants every group on the way to be there.
  for (size_t slash = object.find('/', 1);; slash = object.find('/', slash + 1)) {
    const std::string prefix = object.substr(0, slash);
    if (prefix.empty() || prefix == "/") return true;
    if (H5Lexists(id_, prefix.c_str(), H5P_DEFAULT) <= 0) return false;
    if (slash == std::string::npos) return true;
  }
}

std::vector<std::string> H5File::children(const std::string& group) const {
  CMOE_CHECK(exists(group), "{}: group '{}' is missing", name(), group);
  const Handle handle(H5Gopen2(id_, group.c_str(), H5P_DEFAULT), H5Gclose);
  CMOE_CHECK(handle.get() >= 0, "{}: '{}' is not a group", name(), group);
  std::vector<std::string> names;
  const auto collect = [](hid_t, const char* child, const H5L_info_t*, void* out) -> herr_t {
    static_cast<std::vector<std::string>*>(out)->push_back(child);
    return 0;
  };
  const herr_t status = H5Literate(handle.get(), H5_INDEX_NAME, H5_ITER_INC, nullptr, collect, &names);
  CMOE_CHECK(status >= 0, "{}: group '{}' cannot be listed: {}", name(), group, reason());
  std::sort(names.begin(), names.end());
  return names;
}

int64_t H5File::open_dataset(const std::string& dataset) const {
  CMOE_CHECK(exists(dataset), "{}: dataset '{}' is missing", name(), dataset);
  const hid_t id = H5Dopen2(id_, dataset.c_str(), H5P_DEFAULT);
  CMOE_CHECK(id >= 0, "{}: '{}' is not a dataset: {}", name(), dataset, reason());
  return id;
}

Shape H5File::shape(const std::string& dataset) const {
  const Handle handle(open_dataset(dataset), H5Dclose);
  return shape_of(handle.get());
}

H5Type H5File::type(const std::string& dataset) const {
  const Handle handle(open_dataset(dataset), H5Dclose);
  const auto type = type_of(handle.get());
  CMOE_CHECK(type.has_value(), "{}: dataset '{}' holds a type this program does not read", name(), dataset);
  return *type;
}

void H5File::check_shape(const std::string& dataset, const Shape& expected) const {
  const Shape found = shape(dataset);
  CMOE_CHECK(found == expected, "{}: dataset '{}' has shape {}, expected {}", name(), dataset, to_string(found),
             to_string(expected));
}

void H5File::create_group(const std::string& group) {
  const Handle properties = creating_groups_above();
  const Handle handle(H5Gcreate2(id_, group.c_str(), properties.get(), H5P_DEFAULT, H5P_DEFAULT), H5Gclose);
  if (handle.get() < 0) fail_internal("{}: group '{}' cannot be created: {}", name(), group, reason());
}

void H5File::create_dataset(const std::string& dataset, H5Type type, const Shape& shape) {
  const auto dims = extents(shape);
  const Handle space(H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr), H5Sclose);
  const Handle properties = creating_groups_above();
  const Handle handle(
      H5Dcreate2(id_, dataset.c_str(), file_type(type), space.get(), properties.get(), H5P_DEFAULT, H5P_DEFAULT), H5Dclose);
  if (shape.empty() || handle.get() < 0) {
    fail_internal("{}: dataset '{}' {} {} cannot be created: {}", name(), dataset, name_of(type), to_string(shape), reason());
  }
}

void H5File::transfer(const std::string& dataset, H5Type type, void* values, int64_t size, const Shape& offset,
                      const Shape& count, bool writing) const {
  const Handle handle(open_dataset(dataset), H5Dclose);
  const Shape shape = shape_of(handle.get());
  const auto stored = type_of(handle.get());
  CMOE_CHECK(stored == type, "{}: dataset '{}' holds {}; expected {}", name(), dataset,
             stored ? name_of(*stored) : "another type", name_of(type));
  bool inside = offset.size() == shape.size() && count.size() == shape.size() && !shape.empty();
  for (size_t axis = 0; inside && axis < shape.size(); ++axis) {
    inside = offset[axis] >= 0 && count[axis] >= 0 && offset[axis] <= shape[axis] && count[axis] <= shape[axis] - offset[axis];
  }
  CMOE_CHECK(inside, "{}: dataset '{}' has shape {}; the block of {} at {} is out of its bounds", name(), dataset,
             to_string(shape), to_string(count), to_string(offset));
  int64_t row = 1, full_row = bytes_of(type);  // elements of this block's rows; bytes of the dataset's, the same on all ranks
  for (size_t axis = 1; axis < shape.size(); ++axis) {
    row *= count[axis];
    full_row *= shape[axis];
  }
  if (size != count[0] * row) {
    fail_internal("{}: dataset '{}': {} values for a block of {}", name(), dataset, size, to_string(count));
  }
  if (full_row > INT32_MAX)
    fail_internal("{}: dataset '{}' has rows of {} bytes; expected less than 2^31", name(), dataset, full_row);

  const int64_t rows_per_call = std::max<int64_t>(1, max_transfer_bytes / std::max<int64_t>(full_row, 1));
  const int64_t calls = (shape[0] + rows_per_call - 1) / rows_per_call;
  const Handle transfer_mode(H5Pcreate(H5P_DATASET_XFER), H5Pclose);
  if (shared_) H5Pset_dxpl_mpio(transfer_mode.get(), H5FD_MPIO_COLLECTIVE);
  const Handle in_file(H5Dget_space(handle.get()), H5Sclose);
  for (int64_t call = 0; call < calls; ++call) {
    const int64_t begin = std::min(call * rows_per_call, count[0]);
    const int64_t rows = std::min(rows_per_call, count[0] - begin);
    auto start = extents(offset), block = extents(count);
    start[0] += static_cast<hsize_t>(begin);
    block[0] = static_cast<hsize_t>(rows);
    const auto elements = static_cast<hsize_t>(rows * row);
    const Handle in_memory(H5Screate_simple(1, &elements, nullptr), H5Sclose);
    if (elements == 0) {
      H5Sselect_none(in_file.get());  // this rank has nothing to move, and joins in
      H5Sselect_none(in_memory.get());
    } else {
      H5Sselect_hyperslab(in_file.get(), H5S_SELECT_SET, start.data(), nullptr, block.data(), nullptr);
    }
    char* const cursor = static_cast<char*>(values) + begin * row * bytes_of(type);
    const herr_t status =
        writing ? H5Dwrite(handle.get(), file_type(type), in_memory.get(), in_file.get(), transfer_mode.get(), cursor)
                : H5Dread(handle.get(), file_type(type), in_memory.get(), in_file.get(), transfer_mode.get(), cursor);
    if (status < 0)
      fail_internal("{}: {} dataset '{}' failed: {}{}", name(), writing ? "writing" : "reading", dataset, reason(),
                    writing ? full_disk_hint(path_) : "");
  }
}

void H5File::write_attribute(const std::string& object, const std::string& key, int64_t type, const void* value) const {
  CMOE_CHECK(exists(object), "{}: '{}' is missing; attribute '{}' cannot be set", name(), object, key);
  const Handle owner(H5Oopen(id_, object.c_str(), H5P_DEFAULT), H5Oclose);
  if (H5Aexists(owner.get(), key.c_str()) > 0) H5Adelete(owner.get(), key.c_str());
  const Handle space(H5Screate(H5S_SCALAR), H5Sclose);
  const Handle attribute(H5Acreate2(owner.get(), key.c_str(), type, space.get(), H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
  if (attribute.get() < 0 || H5Awrite(attribute.get(), type, value) < 0) {
    fail_internal("{}: attribute '{}' of '{}' cannot be written: {}", name(), key, object, reason());
  }
}

void H5File::set_attribute(const std::string& object, const std::string& key, const std::string& value) {
  CMOE_CHECK(static_cast<int64_t>(value.size()) <= kMaxAttributeBytes,
             "{}: attribute '{}' of '{}' has {} bytes; expected at most {}", name(), key, object, value.size(),
             kMaxAttributeBytes);
  const Handle type(H5Tcopy(H5T_C_S1), H5Tclose);
  H5Tset_size(type.get(), std::max<size_t>(value.size(), 1));
  H5Tset_strpad(type.get(), H5T_STR_NULLPAD);
  H5Tset_cset(type.get(), H5T_CSET_UTF8);
  write_attribute(object, key, type.get(), value.c_str());
}

void H5File::set_attribute(const std::string& object, const std::string& key, int64_t value) {
  write_attribute(object, key, H5T_STD_I64LE, &value);
}

void H5File::set_attribute(const std::string& object, const std::string& key, double value) {
  write_attribute(object, key, H5T_IEEE_F64LE, &value);
}

bool H5File::has_attribute(const std::string& object, const std::string& key) const {
  return exists(object) && H5Aexists_by_name(id_, object.c_str(), key.c_str(), H5P_DEFAULT) > 0;
}

int64_t H5File::open_attribute(const std::string& object, const std::string& key) const {
  CMOE_CHECK(has_attribute(object, key), "{}: attribute '{}' of '{}' is missing", name(), key, object);
  const hid_t id = H5Aopen_by_name(id_, object.c_str(), key.c_str(), H5P_DEFAULT, H5P_DEFAULT);
  CMOE_CHECK(id >= 0, "{}: attribute '{}' of '{}' cannot be read: {}", name(), key, object, reason());
  const Handle space(H5Aget_space(id), H5Sclose);
  if (H5Sget_simple_extent_npoints(space.get()) != 1) {
    H5Aclose(id);
    fail("{}: attribute '{}' of '{}' is not a single value", name(), key, object);
  }
  return id;
}

std::string H5File::string_attribute(const std::string& object, const std::string& key) const {
  const Handle attribute(open_attribute(object, key), H5Aclose);
  const Handle type(H5Aget_type(attribute.get()), H5Tclose);
  CMOE_CHECK(H5Tget_class(type.get()) == H5T_STRING && H5Tis_variable_str(type.get()) == 0,
             "{}: attribute '{}' of '{}' is not a string of fixed length", name(), key, object);
  std::string value(H5Tget_size(type.get()), '\0');
  CMOE_CHECK(H5Aread(attribute.get(), type.get(), value.data()) >= 0, "{}: attribute '{}' of '{}' cannot be read: {}", name(),
             key, object, reason());
  value.resize(value.find_last_not_of('\0') + 1);  // the padding
  return value;
}

int64_t H5File::integer_attribute(const std::string& object, const std::string& key) const {
  const Handle attribute(open_attribute(object, key), H5Aclose);
  const Handle type(H5Aget_type(attribute.get()), H5Tclose);
  int64_t value = 0;
  CMOE_CHECK(H5Tget_class(type.get()) == H5T_INTEGER && H5Aread(attribute.get(), H5T_NATIVE_INT64, &value) >= 0,
             "{}: attribute '{}' of '{}' is not an integer", name(), key, object);
  return value;
}

double H5File::number_attribute(const std::string& object, const std::string& key) const {
  const Handle attribute(open_attribute(object, key), H5Aclose);
  const Handle type(H5Aget_type(attribute.get()), H5Tclose);
  double value = 0;
  CMOE_CHECK(H5Tget_class(type.get()) == H5T_FLOAT && H5Aread(attribute.get(), H5T_NATIVE_DOUBLE, &value) >= 0,
             "{}: attribute '{}' of '{}' is not a number", name(), key, object);
  return value;
}

std::string hdf5_version() {
  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
  return fmt::format("HDF5 {}.{}.{} with MPI", major, minor, release);
}

}  // namespace cmoe
