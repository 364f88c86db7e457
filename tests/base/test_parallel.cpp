#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <vector>

#include "base/parallel.h"

namespace cmoe {
namespace {

TEST(Parallel, CoversEveryIndexOnceWithAnyNumberOfThreads) {
  for (int threads : {1, 2, 3, 7}) {
    set_num_threads(threads);
    for (int64_t count : {0, 1, 5, 64, 1000}) {
      std::vector<std::atomic<int>> hits(static_cast<size_t>(count));
      parallel_for(count, 7, [&](int64_t begin, int64_t end) {
        EXPECT_EQ(begin % 7, 0);
        for (int64_t i = begin; i < end; ++i) hits[static_cast<size_t>(i)]++;
      });
      for (const auto& hit : hits) EXPECT_EQ(hit.load(), 1);
    }
  }
  set_num_threads(1);
}

TEST(Parallel, RethrowsTheBodysException) {
  set_num_threads(3);
  EXPECT_THROW(parallel_for(100, 1,
                            [](int64_t begin, int64_t) {
                              if (begin == 50) throw std::runtime_error("fifty");
                            }),
               std::runtime_error);
  std::atomic<int> calls{0};
  parallel_for(10, 1, [&](int64_t, int64_t) { calls++; });  // the pool is usable afterwards
  EXPECT_EQ(calls.load(), 10);
  set_num_threads(1);
}

TEST(Parallel, NestedCallsRunOnTheCallingThread) {
  set_num_threads(2);
  std::atomic<int> calls{0};
  parallel_for(4, 1, [&](int64_t, int64_t) { parallel_for(5, 1, [&](int64_t, int64_t) { calls++; }); });
  EXPECT_EQ(calls.load(), 20);
  set_num_threads(1);
}

}  // namespace
}  // namespace cmoe
