#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>

#include "comm/kth_largest.h"
#include "support/refusal.h"
#include "support/world.h"

namespace cmoe {
namespace {

// Deals `all` unevenly: rank r takes every value whose position modulo 7 picks it; some ranks may get none.
std::vector<float> deal(const std::vector<float>& all, const Communicator& comm) {
  std::vector<float> mine;
  for (size_t i = 0; i < all.size(); ++i) {
    if (static_cast<int>(i * i % 7) % comm.size() == comm.rank()) mine.push_back(all[i]);
  }
  return mine;
}

TEST(KthLargest, EqualsASortForEveryKOnAnyNumberOfRanks) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  for (size_t size : {1u, 2u, 17u, 200u}) {
    std::vector<float> all(size);
    for (float& value : all)
      value = random() % 4 == 0 ? std::round(normal(random)) : normal(random) * 1e-3f;  // ties and both signs
    std::vector<float> sorted = all;
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    for (size_t k = 1; k <= size; ++k)
      EXPECT_EQ(kth_largest(deal(all, test_world()), static_cast<int64_t>(k), test_world()), sorted[k - 1]) << k;
  }
}

TEST(KthLargest, OrdersInfinitiesAndRefusesNaN) {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> all{-infinity, 3.0f, infinity, -0.0f};
  EXPECT_EQ(kth_largest(deal(all, test_world()), 1, test_world()), infinity);
  EXPECT_EQ(kth_largest(deal(all, test_world()), 4, test_world()), -infinity);
  const std::vector<float> bad{1.0f, std::nanf("")};
  EXPECT_THAT(refusal([&] { kth_largest(deal(bad, test_world()), 1, test_world()); }),
              ::testing::HasSubstr("1 of 2 router scores are NaN"));
}

}  // namespace
}  // namespace cmoe
