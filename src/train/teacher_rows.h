#pragma once

#include <functional>
#include <span>
#include <string>

#include "model/transformer.h"

namespace cmoe {

/// A teacher's rows before its head, kept in a folder: one safetensors file a sequence, under the hash of teacher, tokens and
/// documents. What is there is not computed again, by whatever run or rank. f32, so that stored rows change no result:
/// 4 T d bytes a sequence.
class TeacherRows {
 public:
  /// @param teacher  names the model and the type of its weights: rows of another one are never taken.
  TeacherRows(std::string folder, std::string teacher) : folder_(std::move(folder)), teacher_(std::move(teacher)) {}

  /// [T, d] f32: from the folder, else from `compute`, whose rows are then stored.
  /// @throws Error naming the file when it is damaged.
  Tensor get(std::span<const int32_t> tokens, std::span<const int64_t> document_rows,
             const std::function<Tensor()>& compute) const;

 private:
  std::string folder_, teacher_;
};

}  // namespace cmoe
