#include <gtest/gtest.h>

#include "serve/admission.h"

namespace cmoe {
namespace {

std::vector<std::pair<int64_t, int64_t>> pairs(const std::vector<Admission>& admitted) {
  std::vector<std::pair<int64_t, int64_t>> result;
  for (const Admission& a : admitted) result.emplace_back(a.request, a.rank);
  return result;
}

using Pairs = std::vector<std::pair<int64_t, int64_t>>;

TEST(AdmissionQueue, SpreadsOverRanksUntilTheyAreFull) {
  AdmissionQueue queue({1, 1, 1, 1, 1}, {10, 10}, 2);
  EXPECT_EQ(pairs(queue.admit()), (Pairs{{0, 0}, {1, 1}, {2, 0}, {3, 1}}));
  EXPECT_EQ(pairs(queue.admit()), Pairs{});
  EXPECT_EQ(queue.running(), 4);
  queue.release(3);
  EXPECT_EQ(pairs(queue.admit()), (Pairs{{4, 1}}));
  for (int64_t request : {0, 1, 2}) queue.release(request);
  EXPECT_FALSE(queue.all_done());
  queue.release(4);
  EXPECT_TRUE(queue.all_done());
}

TEST(AdmissionQueue, NeverOverfillsARank) {
  AdmissionQueue queue({6, 6, 6, 3}, {10, 7}, 8);
  EXPECT_EQ(pairs(queue.admit()), (Pairs{{0, 0}, {1, 1}}));
  queue.release(0);
  EXPECT_EQ(pairs(queue.admit()), (Pairs{{2, 0}, {3, 0}}));
}

TEST(AdmissionQueue, TheFirstInLineIsNotPassedOver) {
  AdmissionQueue queue({5, 9, 1}, {10}, 8);
  EXPECT_EQ(pairs(queue.admit()), (Pairs{{0, 0}}));
  EXPECT_EQ(pairs(queue.admit()), Pairs{}) << "request 2 would fit, but 1 waits before it";
  queue.release(0);
  EXPECT_EQ(pairs(queue.admit()), (Pairs{{1, 0}, {2, 0}}));
}

TEST(AdmissionQueue, NothingToDoIsDone) { EXPECT_TRUE(AdmissionQueue({}, {1}, 1).all_done()); }

}  // namespace
}  // namespace cmoe
