#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "tensor/tensor.h"

namespace cmoe {

/// Reuses large buffers between calls: fresh pages cost as much as the copy that fills them. Blocks go back when their last
/// owner lets go, also after the pool is gone. Holds no more blocks than were in use at once. Safe to use from several threads.
class BufferPool {
 public:
  BufferPool();

  /// At least `bytes` bytes, uninitialised, 64-byte aligned; null for 0.
  std::shared_ptr<std::byte> take(int64_t bytes);
  /// An uninitialised tensor over such a block.
  Tensor take(DType dtype, Shape shape);

  struct Shelf;

 private:
  std::shared_ptr<Shelf> shelf_;
};

}  // namespace cmoe
