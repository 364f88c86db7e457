#include "backend/cpu/large_pages.h"

#include <sys/mman.h>

#include <cstdlib>
#include <mutex>

#include "base/error.h"

namespace cmoe::cpu {
namespace {

constexpr int64_t kPage = int64_t{2} << 20, kChunk = 16 * kPage, kSmall = int64_t{256} << 10;

struct Chunk {
  std::shared_ptr<const void> memory;
  std::byte* begin = nullptr;
  int64_t size = 0, used = 0;
};

Chunk make_chunk(int64_t size) {
  void* memory = std::aligned_alloc(static_cast<size_t>(kPage), static_cast<size_t>(size));
  if (!memory) fail_internal("out of memory: packed weights need {} MB more", size / 1000000);
  madvise(memory, static_cast<size_t>(size), MADV_HUGEPAGE);  // advice: without large pages it is only slower
  return {std::shared_ptr<const void>(memory, [](const void* p) { std::free(const_cast<void*>(p)); }),
          static_cast<std::byte*>(memory), size, 0};
}

}  // namespace

Tensor allocate_on_large_pages(int64_t bytes) {
  if (bytes < kSmall) return Tensor(DType::u8, {bytes});
  const int64_t rounded = (bytes + 63) / 64 * 64;
  if (rounded > kChunk / 2) {
    Chunk chunk = make_chunk((rounded + kPage - 1) / kPage * kPage);
    return Tensor(DType::u8, {bytes}, chunk.memory, chunk.begin);
  }
  static std::mutex mutex;
  // Held weakly: when all its tensors are gone, so is the memory.
  static std::weak_ptr<const void> open;
  static Chunk chunk;
  const std::lock_guard lock(mutex);
  std::shared_ptr<const void> memory = open.lock();
  if (!memory || chunk.used + rounded > chunk.size) {
    chunk = make_chunk(kChunk);
    memory = std::move(chunk.memory);
    open = memory;
  }
  std::byte* begin = chunk.begin + chunk.used;
  chunk.used += rounded;
  return Tensor(DType::u8, {bytes}, std::move(memory), begin);
}

}  // namespace cmoe::cpu
