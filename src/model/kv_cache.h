#pragma once

#include <algorithm>

#include "model/config.h"
#include "tensor/tensor.h"

namespace cmoe {

/// Keys and values of one sequence: per layer [kv_heads, capacity, head_dim] f32.
///
/// A sequence that is scored in one step and never continued needs each layer's keys only while that layer runs: with
/// `Keep::one_layer` all layers share one layer's memory.
class KvCache {
 public:
  enum class Keep { all_layers, one_layer };

  KvCache(const ModelConfig& config, int64_t capacity, Keep keep = Keep::all_layers)
      : capacity_(capacity),
        keep_(keep),
        head_dim_(config.head_dim),
        key_(DType::f32,
             {keep == Keep::one_layer ? 1 : config.num_hidden_layers, config.num_key_value_heads * capacity * config.head_dim}),
        value_(DType::f32, key_.shape()) {}

  static int64_t bytes(const ModelConfig& config, int64_t capacity) {
    return 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * capacity * config.head_dim;
  }

  int64_t capacity() const { return capacity_; }
  /// Tokens whose keys and values are stored.
  int64_t length() const { return length_; }
  void set_length(int64_t length) { length_ = length; }
  /// Takes over the first `length` tokens of another cache of the same model.
  void copy_from(const KvCache& other, int64_t length) {
    const int64_t heads = key_.dim(1) / (capacity_ * head_dim_);
    for (int64_t layer = 0; layer < key_.dim(0); ++layer) {
      for (int64_t head = 0; head < heads; ++head) {
        const int64_t from = head * other.capacity_ * head_dim_, to = head * capacity_ * head_dim_;
        std::copy_n(other.key_.row<float>(layer) + from, length * head_dim_, key_.row<float>(layer) + to);
        std::copy_n(other.value_.row<float>(layer) + from, length * head_dim_, value_.row<float>(layer) + to);
      }
    }
    length_ = length;
  }
  float* key(int64_t layer) { return key_.row<float>(keep_ == Keep::one_layer ? 0 : layer); }
  float* value(int64_t layer) { return value_.row<float>(keep_ == Keep::one_layer ? 0 : layer); }

 private:
  int64_t capacity_;
  Keep keep_;
  int64_t head_dim_;
  int64_t length_ = 0;
  Tensor key_, value_;
};

}  // namespace cmoe
