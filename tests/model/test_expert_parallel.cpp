// A carved model whose experts are spread over ranks against the same model on one rank.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <map>

#include "model/expected_tensors.h"
#include "model/expert_plan.h"
#include "model/generation.h"
#include "model/transformer.h"
#include "support/refusal.h"
#include "support/world.h"

namespace cmoe {
namespace {

const std::string kFixtures = std::string(CMOE_SOURCE_DIR) + "/tests/model/fixtures/";
constexpr const char* kModels[] = {"tiny-cmoe-threshold", "tiny-cmoe-healed", "tiny-cmoe-authors", "tiny-cmoe-static"};

std::vector<int32_t> golden_ids(const std::string& name) {
  std::ifstream file(kFixtures + name + "/golden_ids.txt");
  std::vector<int32_t> ids;
  for (int32_t id; file >> id;) ids.push_back(id);
  return ids;
}

// Counts the tensors that are read.
class CountingSource final : public TensorSource {
 public:
  CountingSource(std::unique_ptr<TensorSource> inner, std::map<std::string, int>& reads)
      : inner_(std::move(inner)), reads_(reads) {}
  std::vector<std::string> names() const override { return inner_->names(); }
  bool contains(const std::string& name) const override { return inner_->contains(name); }
  Shape shape(const std::string& name) const override { return inner_->shape(name); }
  int64_t stored_bytes(const std::string& name) const override { return inner_->stored_bytes(name); }
  std::string stored_type(const std::string& name) const override { return inner_->stored_type(name); }
  std::string file_of(const std::string& name) const override { return inner_->file_of(name); }
  Tensor read(const std::string& name, const Shape& expected, DType as) const override {
    ++reads_[name];
    return inner_->read(name, expected, as);
  }
  void hash_sample_of(const std::string& name, Sha256& hash) const override { inner_->hash_sample_of(name, hash); }

 private:
  std::unique_ptr<TensorSource> inner_;
  std::map<std::string, int>& reads_;
};

std::shared_ptr<const ExpertParallel> spread(const ModelConfig& config, const DispatcherOptions& options, int kind) {
  Communicator& comm = test_world();
  const auto routed = static_cast<int32_t>(config.moe->num_routed_experts());
  std::vector<ExpertPlacement> placement;
  for (int64_t l = 0; l < config.num_hidden_layers; ++l) {
    std::vector<double> load;
    for (int32_t e = 0; e < routed; ++e) load.push_back(static_cast<double>((e * 5 + l * 3) % 7));
    placement.push_back(kind == 0 ? ExpertPlacement::contiguous(routed, comm.size())
                                  : ExpertPlacement::balanced(load, comm.size(), kind - 1));
  }
  return std::make_shared<ExpertParallel>(comm, placement, options);
}

// The logits of every token of `ids`, in steps of `size`, as one sequence of several on this rank.
std::vector<float> logits(const Transformer& model, std::span<const int32_t> ids, size_t size, size_t steps) {
  KvCache cache(model.config(), static_cast<int64_t>(ids.size()));
  std::vector<float> all;
  for (size_t i = 0; i < steps; ++i) {
    const size_t begin = std::min(i * size, ids.size());
    const SequenceStep step{.tokens = ids.subspan(begin, std::min(size, ids.size() - begin)), .cache = &cache};
    const Tensor rows = model.logits(model.forward(Batch(std::span(&step, 1))));
    all.insert(all.end(), rows.span<float>().begin(), rows.span<float>().end());
  }
  return all;
}

TEST(ExpertParallelModel, LogitsEqualOneRankToTheBit) {
  Communicator& comm = test_world();
  const std::shared_ptr<const Backend> backend = make_cpu_backend();
  const bool many = comm.size() > 8;  // thirty-one ranks on few cores: one model, a short text
  for (const char* name : kModels) {
    const Checkpoint checkpoint = open_checkpoint(kFixtures + name);
    std::vector<int32_t> ids = golden_ids(name);
    if (many) ids.resize(4);
    const size_t n = ids.size();
    const Transformer alone(checkpoint, backend, DType::f32);
    // Rank r reads the text from token r on; the third rank has none.
    const bool idle = comm.rank() == 2;
    const std::span<const int32_t> mine =
        idle ? std::span<const int32_t>() : std::span(ids).subspan(static_cast<size_t>(comm.rank()) % n);
    const std::vector<float> expected = logits(alone, mine, n, 1);
    for (const DispatcherKind kind : {DispatcherKind::all_to_all, DispatcherKind::all_gather, DispatcherKind::automatic}) {
      for (int placement = 0; placement < 4; ++placement) {
        if (many && placement != static_cast<int>(kind)) continue;
        const Transformer model(checkpoint, backend, DType::f32, Transformer::LoadFfn::yes,
                                spread(checkpoint.config, {.kind = kind}, placement));
        ASSERT_EQ(logits(model, mine, n, 1), expected) << name << ", placement " << placement;
        ASSERT_EQ(logits(model, mine, n / 2 + 1, 3), expected) << name << ", in steps";
      }
    }
    if (many) break;
  }
}

TEST(ExpertParallelModel, GreedyTextEqualsOneRank) {
  Communicator& comm = test_world();
  const std::shared_ptr<const Backend> backend = make_cpu_backend();
  const Checkpoint checkpoint = open_checkpoint(kFixtures + "tiny-cmoe-threshold");
  const std::vector<int32_t> ids = golden_ids("tiny-cmoe-threshold");
  const std::span<const int32_t> prompt = std::span(ids).first(5);
  const auto alone = comm.split(comm.rank());
  const int64_t tokens = comm.size() > 8 ? 3 : 24;
  const Transformer one(checkpoint, backend, DType::f32);
  const Transformer model(checkpoint, backend, DType::f32, Transformer::LoadFfn::yes, spread(checkpoint.config, {}, 2));
  for (const SamplingOptions& sampling : {SamplingOptions{}, SamplingOptions{.temperature = 1.2, .top_k = 20, .seed = 3}}) {
    const GenerationResult expected = generate(one, prompt, tokens, sampling, *alone);
    const GenerationResult result = generate(model, prompt, tokens, sampling, comm);
    EXPECT_EQ(result.tokens, expected.tokens);
    EXPECT_EQ(result.ended, expected.ended);
    EXPECT_FALSE(result.tokens.empty());
  }
}

TEST(ExpertParallelModel, ARankReadsWhatItKeepsAndNothingTwice) {
  Communicator& comm = test_world();
  std::map<std::string, int> reads;
  Checkpoint checkpoint = open_checkpoint(kFixtures + "tiny-cmoe-threshold");
  checkpoint.tensors = std::make_unique<CountingSource>(std::move(checkpoint.tensors), reads);
  const auto parallel = spread(checkpoint.config, {}, 0);
  const Transformer model(checkpoint, make_cpu_backend(), DType::f32, Transformer::LoadFfn::yes, parallel);
  int64_t read = 0, kept = 0;
  for (const auto& [name, times] : reads) read += times * checkpoint.tensors->stored_bytes(name);
  for (const ExpectedTensor& tensor : expected_tensors(checkpoint.config)) {
    const size_t at = tensor.name.find(".mlp.experts.");
    if (at != std::string::npos) {
      const int64_t layer = std::stoll(tensor.name.substr(std::string("model.layers.").size()));
      const auto expert = static_cast<GlobalExpert>(std::stoi(tensor.name.substr(at + std::string(".mlp.experts.").size())));
      if (parallel->placement(layer).find_local(expert, comm.rank()) == std::nullopt) {
        EXPECT_EQ(reads.count(tensor.name), 0u) << tensor.name;
        continue;
      }
    }
    kept += checkpoint.tensors->stored_bytes(tensor.name);
  }
  EXPECT_EQ(read, kept);
  const std::vector<ExpertPlacement> placement{parallel->placement(0), parallel->placement(1)};
  const RankPlan plan = plan_rank(checkpoint, DType::f32, placement, comm.rank());
  EXPECT_EQ(plan.read_bytes, read);
  EXPECT_EQ(plan.weight_bytes, model.weight_bytes());
}

TEST(ExpertParallelModel, RefusesPlacementsOfAnotherModel) {
  Communicator& comm = test_world();
  const Checkpoint checkpoint = open_checkpoint(kFixtures + "tiny-cmoe-threshold");
  const auto other = std::make_shared<ExpertParallel>(
      comm, std::vector<ExpertPlacement>(2, ExpertPlacement::contiguous(4, comm.size())), DispatcherOptions{});
  EXPECT_THAT(refusal([&] { Transformer(checkpoint, make_cpu_backend(), DType::f32, Transformer::LoadFfn::yes, other); }),
              ::testing::HasSubstr("experts are placed for 2 layers of 4 experts; expected 2 layers of 5"));
}

}  // namespace
}  // namespace cmoe
