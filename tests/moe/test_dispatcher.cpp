#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <random>

#include "base/error.h"
#include "base/parallel.h"
#include "moe/combine.h"
#include "moe/counting_communicator.h"
#include "moe/dispatcher.h"
#include "moe/random_routing.h"
#include "support/world.h"

namespace cmoe {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kHidden = 24;

template <class Call>
std::string message(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

// Runs the test experts on the dispatched rows of this rank.
Tensor run_experts(const Dispatched& dispatched, const ExpertPlacement& placement, int rank) {
  Tensor outputs(DType::f32, dispatched.rows.shape());
  const auto experts = placement.local_experts(rank);
  for (size_t e = 0; e < experts.size(); ++e) {
    for (int64_t row = dispatched.expert_offset[e]; row < dispatched.expert_offset[e + 1]; ++row) {
      test_expert(experts[e], dispatched.rows.row<float>(row), outputs.row<float>(row), kHidden);
    }
  }
  return outputs;
}

Tensor reference(const Tensor& x, const Routing& routing) {
  Tensor y = Tensor::zeros(DType::f32, x.shape());
  reference_combine(
      x, routing, [](GlobalExpert e, const float* row, float* out) { test_expert(e, row, out, kHidden); }, y);
  return y;
}

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && (a.bytes() == 0 || std::memcmp(a.raw(), b.raw(), static_cast<size_t>(a.bytes())) == 0);
}

class DispatcherTest : public ::testing::TestWithParam<DispatcherKind> {
 protected:
  Communicator& comm = test_world();
  const int rank = comm.rank(), ranks = comm.size();
  std::mt19937_64 shared{42};                                          // the same numbers on every rank
  std::mt19937_64 own{static_cast<uint64_t>(1000 + comm.rank())};      // and different ones
  const int64_t tokens = comm.rank() % 3 == 2 ? 0 : 17 + comm.rank();  // some ranks are home to none
  const Tensor x = random_rows(tokens, kHidden, own);

  DispatcherOptions options(DType wire = DType::f32) const { return {GetParam(), wire}; }
};

TEST_P(DispatcherTest, EqualsTheReferenceToTheBit) {
  const auto dispatcher = make_dispatcher(comm, options());
  const std::vector<double> load{5, 3, 8, 1, 1, 2, 9};
  for (const auto& placement : {ExpertPlacement::contiguous(7, ranks), ExpertPlacement::balanced(load, ranks),
                                ExpertPlacement::balanced(load, ranks, 4), random_placement(7, ranks, 3, shared)}) {
    const Routing routing = random_routing(tokens, 7, Pattern::mixed, own);
    Dispatched dispatched = dispatcher->dispatch(x, routing, placement);
    Tensor y = Tensor::zeros(DType::f32, x.shape());
    dispatcher->combine(run_experts(dispatched, placement, rank), std::move(dispatched.handle), y);
    EXPECT_TRUE(same_bits(y, reference(x, routing)));
  }
}

TEST_P(DispatcherTest, IdentityExpertsGiveTheSumOfWeights) {
  const auto dispatcher = make_dispatcher(comm, options());
  const auto placement = random_placement(11, ranks, 2, shared);
  Routing routing = random_routing(tokens, 11, Pattern::mixed, own);
  // Powers of two: products and sums are exact, so that any order gives this result.
  for (float& w : routing.weight) w = std::ldexp(1.0f, static_cast<int>(own() % 4));
  Tensor whole(DType::f32, {tokens, kHidden});
  for (float& value : whole.span<float>()) value = static_cast<float>(own() % 1000);
  Dispatched dispatched = dispatcher->dispatch(whole, routing, placement);
  Tensor y = Tensor::zeros(DType::f32, whole.shape());
  dispatcher->combine(dispatched.rows, std::move(dispatched.handle), y);
  for (int64_t t = 0; t < tokens; ++t) {
    float sum = 0;
    for (int32_t p = routing.expert_offset[static_cast<size_t>(t)]; p < routing.expert_offset[static_cast<size_t>(t) + 1];
         ++p) {
      sum += routing.weight[static_cast<size_t>(p)];
    }
    for (int64_t i = 0; i < kHidden; ++i) ASSERT_EQ(y.row<float>(t)[i], sum * whole.row<float>(t)[i]);
  }
}

TEST_P(DispatcherTest, RowsAreGroupedByExpertThenHomeRankThenToken) {
  const auto dispatcher = make_dispatcher(comm, options());
  const auto placement = random_placement(5, ranks, 2, shared);
  // All ranks can say what the others send: 9 tokens each, every row marked with rank and token.
  std::vector<Routing> routings;
  for (int r = 0; r < ranks; ++r) routings.push_back(random_routing(9, 5, Pattern::mixed, shared));
  Tensor marked = Tensor::zeros(DType::f32, {9, kHidden});
  for (int64_t t = 0; t < 9; ++t) marked.row<float>(t)[1] = static_cast<float>(rank * 100 + t);
  Dispatched dispatched = dispatcher->dispatch(marked, routings[static_cast<size_t>(rank)], placement);
  const auto experts = placement.local_experts(rank);
  ASSERT_EQ(dispatched.expert_offset.size(), experts.size() + 1);
  EXPECT_EQ(dispatched.expert_offset.back(), dispatched.rows.dim(0));
  for (size_t e = 0; e < experts.size(); ++e) {
    std::vector<float> expected, arrived;
    for (int home = 0; home < ranks; ++home) {
      if (placement.rank_for(experts[e], home) != rank) continue;
      for (int64_t t = 0; t < 9; ++t) {
        const auto taken = routings[static_cast<size_t>(home)].experts(t);
        if (std::count(taken.begin(), taken.end(), index_of(experts[e])) > 0)
          expected.push_back(static_cast<float>(home * 100 + t));
      }
    }
    for (int64_t row = dispatched.expert_offset[e]; row < dispatched.expert_offset[e + 1]; ++row) {
      arrived.push_back(dispatched.rows.row<float>(row)[1]);
    }
    EXPECT_EQ(arrived, expected);
  }
  Tensor y = Tensor::zeros(DType::f32, marked.shape());
  dispatcher->combine(dispatched.rows, std::move(dispatched.handle), y);
}

TEST_P(DispatcherTest, CountedBytesArePredictedExactly) {
  CountingCommunicator counting(comm);
  for (const DType wire : {DType::f32, DType::bf16}) {
    const auto dispatcher = make_dispatcher(counting, options(wire));
    for (int i = 0; i < 6; ++i) {
      const auto placement = random_placement(13, ranks, 1 + i % 3, shared);
      const Routing routing = random_routing(tokens, 13, static_cast<Pattern>(static_cast<uint64_t>(i) % kPatterns), own);
      counting.bytes = 0;
      Dispatched dispatched = dispatcher->dispatch(x, routing, placement);
      const auto& begin = dispatched.handle.served_begin;
      const int64_t own_pairs = begin[static_cast<size_t>(rank) + 1] - begin[static_cast<size_t>(rank)];
      const int64_t served = dispatched.rows.dim(0) - own_pairs;
      Tensor y = Tensor::zeros(DType::f32, x.shape());
      const ExchangeReport report = dispatcher->combine(dispatched.rows, std::move(dispatched.handle), y);
      EXPECT_EQ(report.sent, wire_bytes(routing, placement, rank, report.transport, {kHidden, wire}, served));
      EXPECT_EQ(report.sent.total(), counting.bytes);
      if (GetParam() != DispatcherKind::automatic) {
        EXPECT_EQ(report.transport, GetParam() == DispatcherKind::all_gather ? Transport::all_gather : Transport::all_to_all);
      }
      // What a rank says it serves is what the others say they send it.
      std::vector<int64_t> sums = pairs_per_rank(routing, placement, rank);
      sums[static_cast<size_t>(rank)] = 0;
      comm.all_reduce_sum(sums);
      EXPECT_EQ(sums[static_cast<size_t>(rank)], served);
    }
  }
}

TEST_P(DispatcherTest, SmallTransfersGiveTheSame) {
  const auto dispatcher = make_dispatcher(comm, options());
  const auto placement = random_placement(6, ranks, 2, shared);
  const Routing routing = random_routing(tokens, 6, Pattern::mixed, own);
  for (int64_t limit : {1 << 30, 1000, 97, 7}) {
    Environment::set_max_transfer_bytes(limit);
    Dispatched dispatched = dispatcher->dispatch(x, routing, placement);
    Tensor y = Tensor::zeros(DType::f32, x.shape());
    dispatcher->combine(run_experts(dispatched, placement, rank), std::move(dispatched.handle), y);
    EXPECT_TRUE(same_bits(y, reference(x, routing))) << limit << " bytes";
  }
  Environment::set_max_transfer_bytes(int64_t{1} << 30);
}

TEST_P(DispatcherTest, TwoChunksMayBeUnderWay) {
  const auto dispatcher = make_dispatcher(comm, options());
  const auto placement = random_placement(6, ranks, 2, shared);
  const Tensor x2 = random_rows(5, kHidden, own);
  const Routing routing = random_routing(tokens, 6, Pattern::mixed, own), routing2 = random_routing(5, 6, Pattern::mixed, own);
  const auto first = dispatcher->dispatch_start(x, routing, placement);
  const auto second = dispatcher->dispatch_start(x2, routing2, placement);
  while (!second->test()) {
  }
  Dispatched dispatched = first->wait();
  const Tensor outputs = run_experts(dispatched, placement, rank);
  const auto back = dispatcher->combine_start(outputs, std::move(dispatched.handle));
  Dispatched dispatched2 = second->wait();
  const Tensor outputs2 = run_experts(dispatched2, placement, rank);
  const auto back2 = dispatcher->combine_start(outputs2, std::move(dispatched2.handle));
  Tensor y = Tensor::zeros(DType::f32, x.shape()), y2 = Tensor::zeros(DType::f32, x2.shape());
  while (!back->test()) {
  }
  back->wait(y);
  back2->wait(y2);
  EXPECT_TRUE(same_bits(y, reference(x, routing)));
  EXPECT_TRUE(same_bits(y2, reference(x2, routing2)));
}

TEST_P(DispatcherTest, ThreadsDoNotChangeTheResult) {
  const auto dispatcher = make_dispatcher(comm, options());
  const auto placement = random_placement(6, ranks, 2, shared);
  const Tensor many = random_rows(200, kHidden, own);
  const Routing routing = random_routing(200, 6, Pattern::mixed, own);
  set_num_threads(3);
  Dispatched dispatched = dispatcher->dispatch(many, routing, placement);
  Tensor y = Tensor::zeros(DType::f32, many.shape());
  dispatcher->combine(run_experts(dispatched, placement, rank), std::move(dispatched.handle), y);
  set_num_threads(1);
  EXPECT_TRUE(same_bits(y, reference(many, routing)));
}

TEST_P(DispatcherTest, Bf16StaysWithinItsToleranceAndDoesNotDependOnPlacement) {
  const auto dispatcher = make_dispatcher(comm, options(DType::bf16));
  const Routing routing = random_routing(tokens, 9, Pattern::mixed, own);
  std::vector<Tensor> results;
  // With all experts everywhere no row travels; the rounding is the same.
  const std::vector<std::vector<int>> everywhere(9, [&] {
    std::vector<int> all;
    for (int r = 0; r < ranks; ++r) all.push_back(r);
    return all;
  }());
  for (const auto& placement : {ExpertPlacement::of(everywhere, ranks), ExpertPlacement::contiguous(9, ranks)}) {
    Dispatched dispatched = dispatcher->dispatch(x, routing, placement);
    results.push_back(Tensor::zeros(DType::f32, x.shape()));
    dispatcher->combine(dispatched.rows, std::move(dispatched.handle), results.back());
  }
  EXPECT_TRUE(same_bits(results[0], results[1]));
  for (int64_t t = 0; t < tokens; ++t) {
    double sum = 0, magnitude = 0;
    for (int32_t p = routing.expert_offset[static_cast<size_t>(t)]; p < routing.expert_offset[static_cast<size_t>(t) + 1];
         ++p) {
      sum += routing.weight[static_cast<size_t>(p)];
      magnitude += std::abs(routing.weight[static_cast<size_t>(p)]);
    }
    for (int64_t i = 0; i < kHidden; ++i) {
      // The second rounding of an identity expert changes nothing: one relative error of at most 2^-8 per term, and f32's own.
      const double bound = magnitude * std::abs(x.row<float>(t)[i]) * (std::ldexp(1.0, -8) + 1e-5);
      ASSERT_NEAR(results[0].row<float>(t)[i], sum * x.row<float>(t)[i], bound);
    }
  }
}

TEST_P(DispatcherTest, NoExpertsAtAll) {
  const auto dispatcher = make_dispatcher(comm, options());
  const auto placement = ExpertPlacement::contiguous(0, ranks);
  const Routing routing = random_routing(tokens, 0, Pattern::mixed, own);
  Dispatched dispatched = dispatcher->dispatch(x, routing, placement);
  EXPECT_EQ(dispatched.rows.dim(0), 0);
  Tensor y = x.clone();
  dispatcher->combine(dispatched.rows, std::move(dispatched.handle), y);
  EXPECT_TRUE(same_bits(y, x));
}

std::string kind_name(const ::testing::TestParamInfo<DispatcherKind>& info) {
  const char* names[] = {"automatic", "all_to_all", "all_gather"};
  return names[static_cast<size_t>(info.param)];
}

INSTANTIATE_TEST_SUITE_P(Kinds, DispatcherTest,
                         ::testing::Values(DispatcherKind::automatic, DispatcherKind::all_to_all, DispatcherKind::all_gather),
                         kind_name);

TEST(Dispatcher, AutomaticTakesTheCheaperTransportOnAllRanks) {
  Communicator& comm = test_world();
  const int rank = comm.rank(), ranks = comm.size();
  const int64_t d = 256;
  std::mt19937_64 shared(5), own(static_cast<uint64_t>(rank));
  const auto dispatcher = make_dispatcher(comm, {});
  int64_t all_gathers = 0, all_to_alls = 0;
  for (int i = 0; i < 12; ++i) {
    const auto pattern = static_cast<Pattern>(static_cast<uint64_t>(i) % kPatterns);
    const auto placement = random_placement(3 * ranks, ranks, 1, shared);
    const Routing routing = random_routing(8, 3 * ranks, pattern, own);
    std::vector<int64_t> bytes;
    for (const Transport transport : {Transport::all_to_all, Transport::all_gather}) {
      const WireBytes mine = wire_bytes(routing, placement, rank, transport, {d, DType::f32}, 0);
      bytes.push_back(mine.ids + mine.rows);
    }
    comm.all_reduce_sum(bytes);
    Dispatched dispatched = dispatcher->dispatch(random_rows(8, d, own), routing, placement);
    EXPECT_EQ(dispatched.handle.report.transport, choose_transport(bytes[0], bytes[1]));
    ++(dispatched.handle.report.transport == Transport::all_gather ? all_gathers : all_to_alls);
  }
  EXPECT_GT(all_to_alls, 0);
  if (ranks == 2) {
    EXPECT_GT(all_gathers, 0);
  }
}

TEST(Dispatcher, RefusesWhatDoesNotFit) {
  Communicator& comm = test_world();
  const int ranks = comm.size();
  const auto dispatcher = make_dispatcher(comm, {});
  const auto placement = ExpertPlacement::contiguous(3, ranks);
  const Tensor x = Tensor::zeros(DType::f32, {1, 4});
  const auto dispatch = [&](const Tensor& rows, const Routing& routing, const ExpertPlacement& where) {
    return message([&] { dispatcher->dispatch(rows, routing, where); });
  };
  const Routing good{{0, 1}, {1}, {1}};
  EXPECT_THAT(dispatch(x, good, ExpertPlacement::contiguous(3, ranks + 1)),
              HasSubstr(fmt::format("placement is for {} ranks; expected {}", ranks + 1, ranks)));
  EXPECT_THAT(dispatch(Tensor::zeros(DType::f32, {2, 4}), good, placement),
              HasSubstr("x is f32 [2, 4]; expected f32 [1, hidden_size]"));
  EXPECT_THAT(dispatch(x, {{0, 1}, {3}, {1}}, placement),
              HasSubstr("token 0 takes expert 3 after -1; expected ascending ids from 0 to 2"));
  EXPECT_THAT(dispatch(x, {{0, 2}, {2, 1}, {1, 1}}, placement), HasSubstr("takes expert 1 after 2"));
  EXPECT_THAT(dispatch(x, {{0, 2}, {1, 1}, {1, 1}}, placement), HasSubstr("takes expert 1 after 1"));
  EXPECT_THAT(dispatch(x, {{0, 1}, {1}, {}}, placement), HasSubstr("1 expert ids, 0 weights"));
  EXPECT_THAT(message([&] {
                make_dispatcher(comm, {DispatcherKind::automatic, DType::f16});
              }),
              HasSubstr("wire_dtype: f16; expected f32 or bf16"));
  EXPECT_THAT(message([] { dispatcher_kind("a2a"); }), HasSubstr("'a2a'; expected auto, all_to_all or all_gather"));
  EXPECT_EQ(dispatcher_kind("all_gather"), DispatcherKind::all_gather);

  Dispatched dispatched = dispatcher->dispatch(x, good, placement);
  const int64_t n = dispatched.rows.dim(0);
  EXPECT_THAT(message([&] {
                dispatcher->combine_start(Tensor::zeros(DType::f32, {n + 1, 4}), dispatched.handle);
              }),
              HasSubstr(fmt::format("outputs is f32 [{}, 4]; expected f32 [{}, 4]", n + 1, n)));
  Tensor narrow = Tensor::zeros(DType::f32, {1, 3}), y = Tensor::zeros(DType::f32, {1, 4});
  const auto back = dispatcher->combine_start(dispatched.rows, std::move(dispatched.handle));
  EXPECT_THAT(message([&] { back->wait(narrow); }), HasSubstr("y is f32 [1, 3]; expected f32 [1, 4]"));
  back->wait(y);
}

TEST(Dispatcher, RanksThatDifferAreTold) {
  Communicator& comm = test_world();
  if (comm.size() < 2) GTEST_SKIP() << "needs two ranks";
  // The last rank has experts 0 and 1 the other way round.
  const bool last = comm.rank() == comm.size() - 1;
  const auto placement = ExpertPlacement::of(
      last ? std::vector<std::vector<int>>{{0}, {1}} : std::vector<std::vector<int>>{{1}, {0}}, comm.size());
  const auto dispatcher = make_dispatcher(comm, {});
  const std::string text = message([&] {
    dispatcher->dispatch(Tensor::zeros(DType::f32, {1, 4}), {{0, 1}, {1}, {1}}, placement);
  });
  EXPECT_THAT(text, HasSubstr(fmt::format("rank {} and rank {} differ in hidden_size (4 here)", comm.rank(),
                                          last ? 0 : comm.size() - 1)));
  comm.barrier();
}

}  // namespace
}  // namespace cmoe
