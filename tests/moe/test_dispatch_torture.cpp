// Random routings against the one-rank reference, to the bit: 14,300 over all rank counts of tests.cmake.

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <random>

#include "moe/combine.h"
#include "moe/dispatcher.h"
#include "moe/random_routing.h"
#include "support/world.h"

namespace cmoe {
namespace {

// Seconds one case may take before SIGALRM ends this rank, and mpirun the others: a hang is a failure, not a wait.
constexpr unsigned kCaseSeconds = 20;

int64_t cases(int ranks) {
  const std::map<int, int64_t> table{{1, 3000}, {2, 3000}, {3, 3000}, {4, 3000}, {8, 2000}, {31, 300}};
  const auto found = table.find(ranks);
  return found == table.end() ? 100 : found->second;
}

struct Case {
  int64_t hidden_size;
  int32_t num_experts;
  ExpertPlacement placement;
  std::vector<int64_t> tokens;  // [ranks]
  Pattern pattern;
};

// The same on every rank.
Case random_case(uint64_t seed, int ranks) {
  std::mt19937_64 random(seed);
  const auto pick = [&](std::initializer_list<int64_t> values) { return values.begin()[random() % values.size()]; };
  const auto num_experts = static_cast<int32_t>(pick({1, 2, 3, 7, 8, 13, 14, 31}));
  const int most_copies = static_cast<int>(pick({1, 1, 2, ranks}));
  Case result{pick({1, 2, 7, 16}),
              num_experts,
              random() % 3 == 0 ? ExpertPlacement::contiguous(num_experts, ranks)
                                : random_placement(num_experts, ranks, most_copies, random),
              {},
              static_cast<Pattern>(random() % kPatterns)};
  const int64_t shape = static_cast<int64_t>(random() % 4);
  const uint64_t lonely = random() % static_cast<uint64_t>(ranks);
  for (int r = 0; r < ranks; ++r) {
    const bool is_lonely = static_cast<uint64_t>(r) == lonely;
    // One token in the whole group; one rank has them all; primes; anything, often nothing.
    if (shape == 0) result.tokens.push_back(is_lonely ? 1 : 0);
    if (shape == 1) result.tokens.push_back(is_lonely ? 23 : 0);
    if (shape == 2) result.tokens.push_back(pick({2, 3, 5, 7, 11, 13}));
    if (shape == 3) result.tokens.push_back(random() % 2 == 0 ? 0 : static_cast<int64_t>(random() % 20));
  }
  return result;
}

TEST(DispatchTorture, RandomRoutingsEqualTheReference) {
  Communicator& comm = test_world();
  const int rank = comm.rank(), ranks = comm.size();
  std::vector<std::unique_ptr<Dispatcher>> dispatchers;
  for (const auto kind : {DispatcherKind::all_to_all, DispatcherKind::all_gather, DispatcherKind::automatic}) {
    dispatchers.push_back(make_dispatcher(comm, {kind, DType::f32}));
  }
  int64_t wrong = 0, first_wrong = -1;
  for (int64_t i = 0; i < cases(ranks); ++i) {
    alarm(kCaseSeconds);
    const Case c = random_case(static_cast<uint64_t>(i) * 1009 + static_cast<uint64_t>(ranks), ranks);
    std::mt19937_64 random(static_cast<uint64_t>(i * 64 + rank));
    const int64_t d = c.hidden_size, tokens = c.tokens[static_cast<size_t>(rank)];
    const Routing routing = random_routing(tokens, c.num_experts, c.pattern, random);
    const Tensor x = random_rows(tokens, d, random);
    const Tensor before = random_rows(tokens, d, random);  // combine adds to what is there

    Tensor expected = before.clone();
    reference_combine(
        x, routing, [d](GlobalExpert e, const float* row, float* out) { test_expert(e, row, out, d); }, expected);

    Tensor y = before.clone();
    Dispatcher& dispatcher = *dispatchers[static_cast<size_t>(i) % dispatchers.size()];
    Dispatched dispatched = dispatcher.dispatch(x, routing, c.placement);
    Tensor outputs(DType::f32, dispatched.rows.shape());
    const auto experts = c.placement.local_experts(rank);
    for (size_t e = 0; e < experts.size(); ++e) {
      for (int64_t row = dispatched.expert_offset[e]; row < dispatched.expert_offset[e + 1]; ++row) {
        test_expert(experts[e], dispatched.rows.row<float>(row), outputs.row<float>(row), d);
      }
    }
    dispatcher.combine(outputs, std::move(dispatched.handle), y);
    if (y.bytes() > 0 && std::memcmp(y.raw(), expected.raw(), static_cast<size_t>(y.bytes())) != 0) {
      if (wrong++ == 0) first_wrong = i;
    }
  }
  alarm(0);
  EXPECT_EQ(wrong, 0) << "of " << cases(ranks) << " routings; the first is case " << first_wrong;
}

}  // namespace
}  // namespace cmoe
