#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "base/error.h"
#include "moe/combine.h"
#include "moe/moe_layer.h"
#include "random_routing.h"
#include "support/world.h"

namespace cmoe {
namespace {

constexpr int64_t kHidden = 20, kNeurons = 6, kLayers = 2;
constexpr int32_t kExperts = 7;

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && (a.bytes() == 0 || std::memcmp(a.raw(), b.raw(), static_cast<size_t>(a.bytes())) == 0);
}

// Counts calls, and what they say.
struct Observer : MoeObserver {
  void on_routing(int64_t layer, const Routing& routing) override {
    EXPECT_EQ(layer, 1);
    routed_pairs += static_cast<int64_t>(routing.expert_idx.size());
  }
  void on_call(int64_t layer, const MoeCall& call) override {
    EXPECT_EQ(layer, 1);
    ++calls;
    served_pairs += call.rows_served;
    tokens += call.tokens;
    sent += call.report.sent.total();
    for (const MoeCall::Stage& stage : call.stages) EXPECT_GE(stage.seconds, 0);
  }
  int64_t calls = 0, routed_pairs = 0, served_pairs = 0, tokens = 0, sent = 0;
};

// The same layer and tokens on all ranks; the tokens of rank r are rows [r n, (r + 1) n) of x, for n tokens a rank.
class MoeLayerTest : public ::testing::TestWithParam<Selector> {
 protected:
  Communicator& comm = test_world();
  std::unique_ptr<Backend> backend = make_cpu_backend();
  std::mt19937_64 random{17};
  MoeLayer layer = make_layer();

  Weight weight(int64_t out, int64_t in) { return backend->prepare(random_rows(out, in, random), DType::f32); }
  Tensor vector(int64_t size) { return random_rows(1, size, random).reshape({size}); }
  GatedFfn ffn(int64_t neurons) {
    return {weight(neurons, kHidden), weight(neurons, kHidden), weight(kHidden, neurons), vector(kHidden)};
  }
  MoeLayer make_layer() {
    MoeLayer made;
    made.shared = ffn(2 * kNeurons);
    for (int32_t e = 0; e < kExperts; ++e) made.experts.push_back(ffn(kNeurons));
    made.router = {.kind = RouterKind::linear, .selector = GetParam(), .num_experts_per_tok = 3, .threshold = 1.0f};
    made.router.weight = weight(kExperts, kHidden);
    made.router.bias = vector(kExperts);
    made.router.scale = vector(kExperts);
    made.compensation_bias = vector(kHidden);
    made.parallel = ExpertParallel::alone(kLayers, kExperts);
    return made;
  }
  // This rank's part of the layer: other ranks' experts are not there.
  MoeLayer spread(ExpertPlacement placement, const DispatcherOptions& options, int64_t chunks = 1) {
    MoeLayer mine = layer;
    const auto parallel =
        std::make_shared<ExpertParallel>(comm, std::vector<ExpertPlacement>(static_cast<size_t>(kLayers), placement), options);
    parallel->set_chunks(chunks);
    mine.parallel = parallel;
    for (int32_t e = 0; e < kExperts; ++e) {
      if (!mine.parallel->holds(1, GlobalExpert{e})) mine.experts[static_cast<size_t>(e)] = {};
    }
    return mine;
  }
  // x + FFN(input), row by row, without any of the layer's machinery.
  Tensor reference(const Tensor& input, const Tensor& x) {
    Tensor y = x.clone();
    for (int64_t t = 0; t < y.dim(0); ++t) {
      Tensor row = y.rows(t, t + 1);
      gated_ffn(*backend, *layer.shared, input.rows(t, t + 1), row, true);
      backend->add_bias(layer.compensation_bias, row);
    }
    const Routing routing = select_experts(layer.router, router_scores(*backend, layer.router, input));
    reference_combine(
        input, routing,
        [&](GlobalExpert e, const float* row, float* out) {
          const Tensor one(DType::f32, {1, kHidden}, nullptr, const_cast<float*>(row));
          Tensor result(DType::f32, {1, kHidden}, nullptr, out);
          gated_ffn(*backend, layer.experts[static_cast<size_t>(index_of(e))], one, result);
        },
        y);
    return y;
  }
};

TEST_P(MoeLayerTest, AloneEqualsTheDefinition) {
  for (int64_t tokens : {0, 1, 5, 300}) {
    const Tensor input = random_rows(tokens, kHidden, random), x = random_rows(tokens, kHidden, random);
    Tensor y = x.clone();
    Observer observer;
    layer.add_to(*backend, 1, input, y, &observer);
    EXPECT_TRUE(same_bits(y, reference(input, x))) << tokens;
    EXPECT_EQ(observer.calls, 1);
    EXPECT_EQ(observer.tokens, tokens);
    EXPECT_EQ(observer.served_pairs, observer.routed_pairs);
    EXPECT_EQ(observer.sent, 0);
  }
}

TEST_P(MoeLayerTest, TheResultDoesNotDependOnTheSpread) {
  const int ranks = comm.size(), rank = comm.rank();
  const std::vector<double> load{9, 1, 4, 0, 2, 7, 3};
  const std::vector<ExpertPlacement> placements{
      ExpertPlacement::contiguous(kExperts, ranks), ExpertPlacement::balanced(load, ranks),
      ExpertPlacement::balanced(load, ranks, 3),
      // Everything on the last rank: the others hold none.
      ExpertPlacement::of(std::vector<std::vector<int>>(kExperts, {ranks - 1}), ranks)};
  for (const ExpertPlacement& placement : placements) {
    for (const DispatcherKind kind : {DispatcherKind::automatic, DispatcherKind::all_to_all, DispatcherKind::all_gather}) {
      const MoeLayer mine = spread(placement, {.kind = kind});
      // Many tokens everywhere; one token on rank 0 alone; tokens on the last rank alone.
      for (const int64_t tokens : {int64_t{rank % 3 * 4 + 1}, int64_t{rank == 0}, int64_t{rank == ranks - 1 ? 9 : 0}}) {
        const Tensor all_input = random_rows(ranks * 9, kHidden, random), all_x = random_rows(ranks * 9, kHidden, random);
        const Tensor input = all_input.rows(rank * 9, rank * 9 + tokens), x = all_x.rows(rank * 9, rank * 9 + tokens);
        Tensor y = x.clone();
        Observer observer;
        mine.add_to(*backend, 1, input, y, &observer);
        EXPECT_TRUE(same_bits(y, reference(input, x)));
        std::vector<int64_t> pairs{observer.served_pairs, observer.routed_pairs};
        comm.all_reduce_sum(pairs);
        EXPECT_EQ(pairs[0], pairs[1]);
      }
    }
  }
}

TEST_P(MoeLayerTest, TheResultDoesNotDependOnThePieces) {
  const int ranks = comm.size(), rank = comm.rank();
  for (const DispatcherKind kind : {DispatcherKind::all_to_all, DispatcherKind::all_gather}) {
    for (const int64_t chunks : {2, 3, 8}) {
      const MoeLayer mine = spread(ExpertPlacement::contiguous(kExperts, ranks), {.kind = kind}, chunks);
      // Pieces of several tokens, of one and of none.
      for (const int64_t tokens : {int64_t{rank % 3 * 300 + 1}, int64_t{rank == 0}, int64_t{5}}) {
        const Tensor input = random_rows(1000, kHidden, random).rows(0, tokens);
        const Tensor x = random_rows(1000, kHidden, random).rows(0, tokens);
        Tensor y = x.clone();
        Observer observer;
        mine.add_to(*backend, 1, input, y, &observer);
        EXPECT_TRUE(same_bits(y, reference(input, x))) << chunks << " " << tokens;
        EXPECT_EQ(observer.calls, chunks);
        EXPECT_EQ(observer.tokens, tokens);
      }
    }
  }
}

TEST_P(MoeLayerTest, Bf16RowsStayNear) {
  const int ranks = comm.size(), rank = comm.rank();
  const MoeLayer mine = spread(ExpertPlacement::contiguous(kExperts, ranks), {.wire = DType::bf16});
  const Tensor all_input = random_rows(ranks * 4, kHidden, random), all_x = random_rows(ranks * 4, kHidden, random);
  const Tensor input = all_input.rows(rank * 4, rank * 4 + 4), x = all_x.rows(rank * 4, rank * 4 + 4);
  Tensor y = x.clone();
  mine.add_to(*backend, 1, input, y, nullptr);
  const Tensor expected = reference(input, x);
  double error = 0, square = 0;
  for (int64_t i = 0; i < y.size(); ++i) {
    error += std::pow(y.data<float>()[i] - expected.data<float>()[i], 2);
    square += std::pow(expected.data<float>()[i], 2);
  }
  EXPECT_LT(std::sqrt(error / square), 0.01) << "rows and partial results keep 8 bits each: 0.4 % a value";
  EXPECT_GT(error, 0) << "rows were to be rounded";
  // Also with bf16 on the wire, the spread does not matter.
  const MoeLayer other = spread(ExpertPlacement::of(std::vector<std::vector<int>>(kExperts, {ranks - 1}), ranks),
                                {.kind = DispatcherKind::all_gather, .wire = DType::bf16});
  Tensor again = x.clone();
  other.add_to(*backend, 1, input, again, nullptr);
  EXPECT_TRUE(same_bits(again, y));
}

INSTANTIATE_TEST_SUITE_P(Selectors, MoeLayerTest, ::testing::Values(Selector::topk, Selector::threshold),
                         [](const auto& test) { return test.param == Selector::topk ? "topk" : "threshold"; });

TEST(ExpertParallel, RefusesPlacementsThatDoNotFitTheGroup) {
  Communicator& comm = test_world();
  EXPECT_THAT(
      [&] {
        ExpertParallel(comm, {ExpertPlacement::contiguous(3, comm.size()), ExpertPlacement::contiguous(4, comm.size())}, {});
      },
      ::testing::ThrowsMessage<Error>(::testing::HasSubstr("a layer places 4 experts")));
  EXPECT_THAT([&] { ExpertParallel(comm, {ExpertPlacement::contiguous(3, comm.size() + 1)}, {}); },
              ::testing::ThrowsMessage<Error>(::testing::HasSubstr("ranks of the group")));
}

}  // namespace
}  // namespace cmoe
