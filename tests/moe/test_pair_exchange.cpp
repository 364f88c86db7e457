// Values of (token, expert) pairs that travel with the rows of a dispatch.
#include <gtest/gtest.h>

#include "moe/pair_exchange.h"
#include "moe/random_routing.h"
#include "support/world.h"

namespace cmoe {
namespace {

struct Pair {
  int32_t home, token, expert;
  bool operator==(const Pair&) const = default;
};

TEST(PairExchange, PairsMeetTheirRowsAndComeHome) {
  Communicator& world = test_world();
  constexpr int32_t kExperts = 5;
  std::mt19937_64 shared(3), mine(static_cast<uint64_t>(17 + world.rank()));
  for (DispatcherKind kind : {DispatcherKind::all_to_all, DispatcherKind::all_gather}) {
    const auto dispatcher = make_dispatcher(world, {.kind = kind});
    for (int round = 0; round < 8; ++round) {
      const ExpertPlacement placement = random_placement(kExperts, world.size(), 2, shared);
      const int64_t tokens = static_cast<int64_t>(mine() % 3) * 20;  // none, too
      const Routing routing = random_routing(tokens, kExperts, static_cast<Pattern>(mine() % kPatterns), mine);
      Tensor x(DType::f32, {tokens, 2});
      std::vector<Pair> pairs;
      for (int64_t t = 0; t < tokens; ++t) {
        x.row<float>(t)[0] = static_cast<float>(world.rank());
        x.row<float>(t)[1] = static_cast<float>(t);
        for (int32_t e : routing.experts(t)) pairs.push_back({world.rank(), static_cast<int32_t>(t), e});
      }
      const Dispatched arrived = dispatcher->dispatch(x, routing, placement);
      const std::vector<Pair> served = send_with_rows<Pair>(world, arrived.handle, pairs);
      const auto local = placement.local_experts(world.rank());
      ASSERT_EQ(static_cast<int64_t>(served.size()), arrived.rows.dim(0));
      for (size_t i = 0; i < local.size(); ++i) {
        for (int64_t row = arrived.expert_offset[i]; row < arrived.expert_offset[i + 1]; ++row) {
          const Pair expected{static_cast<int32_t>(arrived.rows.row<float>(row)[0]),
                              static_cast<int32_t>(arrived.rows.row<float>(row)[1]), index_of(local[i])};
          ASSERT_EQ(served[static_cast<size_t>(row)], expected);
        }
      }
      EXPECT_EQ(send_home<Pair>(world, arrived.handle, served), pairs);
    }
  }
}

}  // namespace
}  // namespace cmoe
