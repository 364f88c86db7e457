#include "moe/buffer_pool.h"

#include <algorithm>
#include <mutex>
#include <vector>

namespace cmoe {

struct BufferPool::Shelf {
  std::mutex mutex;
  std::vector<Tensor> free;  // u8, ascending by size
};

BufferPool::BufferPool() : shelf_(std::make_shared<Shelf>()) {}

std::shared_ptr<std::byte> BufferPool::take(int64_t bytes) {
  if (bytes == 0) return nullptr;
  Tensor block;
  {
    const std::lock_guard lock(shelf_->mutex);
    auto& free = shelf_->free;
    const auto fits =
        std::lower_bound(free.begin(), free.end(), bytes, [](const Tensor& b, int64_t n) { return b.size() < n; });
    if (fits != free.end()) {
      block = std::move(*fits);
      free.erase(fits);
    } else if (!free.empty()) {
      free.pop_back();  // too small: the larger block below replaces it, so that the number of blocks does not grow
    }
  }
  // An eighth more than asked: batches of slightly different sizes share a block.
  if (!block.defined() || block.size() == 0) block = Tensor(DType::u8, {bytes + bytes / 8});
  std::byte* memory = reinterpret_cast<std::byte*>(block.data<uint8_t>());
  return {memory, [block = std::move(block), shelf = std::weak_ptr(shelf_)](std::byte*) mutable {
            if (const auto alive = shelf.lock()) {
              const std::lock_guard lock(alive->mutex);
              auto& free = alive->free;
              const auto at = std::lower_bound(free.begin(), free.end(), block.size(),
                                               [](const Tensor& b, int64_t n) { return b.size() < n; });
              free.insert(at, std::move(block));
            }
          }};
}

Tensor BufferPool::take(DType dtype, Shape shape) {
  int64_t bytes = size_of(dtype);
  for (int64_t extent : shape) bytes *= extent;
  auto memory = take(bytes);
  std::byte* data = memory.get();
  return Tensor(dtype, std::move(shape), std::move(memory), data);
}

}  // namespace cmoe
