#include "train/teacher_rows.h"

#include <filesystem>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/sha256.h"
#include "tensor/safetensors.h"
#include "tensor/safetensors_writer.h"

namespace cmoe {

Tensor TeacherRows::get(std::span<const int32_t> tokens, std::span<const int64_t> document_rows,
                        const std::function<Tensor()>& compute) const {
  Sha256 hash;
  hash.update(teacher_.data(), teacher_.size());
  hash.update(tokens.data(), tokens.size_bytes());
  hash.update(document_rows.data(), document_rows.size_bytes());
  const std::string path = folder_ + "/" + hash.hex() + ".safetensors";
  if (!std::filesystem::exists(path)) {
    const Tensor rows = compute();
    write_file_atomically(path, safetensors_bytes({{"rows", rows}}, {}));
    return rows;
  }
  Tensor rows = SafetensorsFile(path).read("rows", DType::f32);
  CMOE_CHECK(rows.shape().size() == 2 && rows.dim(0) == static_cast<int64_t>(tokens.size()),
             "{}: rows are {}, expected {} of them; remove the file", path, to_string(rows.shape()), tokens.size());
  return rows;
}

}  // namespace cmoe
