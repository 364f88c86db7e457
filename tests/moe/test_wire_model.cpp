#include <gmock/gmock.h>

#include <random>

#include "base/error.h"
#include "moe/random_routing.h"
#include "moe/wire_model.h"

namespace cmoe {
namespace {

TEST(WireModel, CountsASmallCaseByHand) {
  // Ranks 0, 1, 2 hold experts {0, 1}, {2}, {3}; home is rank 0; three tokens: {0, 2, 3}, {}, {0, 1}.
  const auto placement = ExpertPlacement::of({{0}, {0}, {1}, {2}}, 3);
  const Routing routing{{0, 3, 3, 5}, {0, 2, 3, 0, 1}, {1, 1, 1, 1, 1}};
  const WireBytes to_ranks = wire_bytes(routing, placement, 0, Transport::all_to_all, {10, DType::f32}, 7);
  EXPECT_EQ(to_ranks, (WireBytes{2 * 7 * 8, 4 * (2 + 2), 2 * 40, 7 * 40}));
  const WireBytes to_all = wire_bytes(routing, placement, 0, Transport::all_gather, {10, DType::bf16}, 0);
  EXPECT_EQ(to_all, (WireBytes{2 * 7 * 8, 2 * 4 * (3 + 5), 2 * 3 * 20, 0}));
  EXPECT_EQ(pairs_per_rank(routing, placement, 0), (std::vector<int64_t>{3, 1, 1}));
}

TEST(WireModel, ExpectationAgreesWithRandomRoutings) {
  std::mt19937_64 random(11);
  const int ranks = 4;
  const int32_t experts = 14;
  const int64_t tokens = 6000;
  const auto placement = random_placement(experts, ranks, 2, random);
  // Sets of 0, 2, 6 and 14 experts.
  std::vector<double> probability(experts + 1, 0.0);
  probability[0] = 0.1, probability[2] = 0.4, probability[6] = 0.3, probability[14] = 0.2;
  std::discrete_distribution<size_t> size(probability.begin(), probability.end());
  std::vector<int32_t> all(experts);
  for (int32_t e = 0; e < experts; ++e) all[static_cast<size_t>(e)] = e;
  const auto near = [](int64_t expected, int64_t actual, const char* what) {
    EXPECT_NEAR(static_cast<double>(expected), static_cast<double>(actual), 0.02 * static_cast<double>(actual)) << what;
  };
  for (const Transport transport : {Transport::all_to_all, Transport::all_gather}) {
    WireBytes sum;
    for (int home = 0; home < ranks; ++home) {
      Routing routing;
      for (int64_t t = 0; t < tokens / ranks; ++t) {
        std::shuffle(all.begin(), all.end(), random);
        append_token(routing, {all.begin(), all.begin() + static_cast<int64_t>(size(random))}, random);
      }
      sum += wire_bytes(routing, placement, home, transport, {64, DType::f32}, 0);
      const auto pairs = pairs_per_rank(routing, placement, home);
      for (size_t r = 0; r < pairs.size(); ++r) sum.partials += static_cast<int>(r) == home ? 0 : pairs[r] * 64 * 4;
    }
    const WireBytes expected = expected_wire_bytes(tokens, probability, placement, transport, {64, DType::f32});
    EXPECT_EQ(expected.counts, sum.counts);
    near(expected.ids, sum.ids, "ids");
    near(expected.rows, sum.rows, "rows");
    near(expected.partials, sum.partials, "partials");
  }
}

TEST(WireModel, ChoosesByBytes) {
  EXPECT_EQ(choose_transport(0, 0), Transport::all_to_all);
  EXPECT_EQ(choose_transport(1000, 1000), Transport::all_gather);
  EXPECT_EQ(choose_transport(1000, 2000), Transport::all_to_all);
  EXPECT_EQ(name_of(Transport::all_gather), "all_gather");
}

TEST(WireModel, TimeIsLatencyPlusBytes) {
  EXPECT_DOUBLE_EQ(wire_seconds({0, 0, 500, 500}, 5, {1e-6, 1e6}), 12e-6 + 1e-3);
  EXPECT_DOUBLE_EQ(wire_seconds({}, 1, {1, 1}), 0.0);
}

TEST(WireModel, RefusesAWrongNumberOfProbabilities) {
  try {
    expected_wire_bytes(1, std::vector<double>{1.0}, ExpertPlacement::contiguous(2, 1), Transport::all_to_all, {});
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("1 probabilities; expected 3"));
  }
}

}  // namespace
}  // namespace cmoe
