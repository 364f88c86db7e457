#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>

#include "base/parallel.h"
#include "base/read_file.h"
#include "model/transformer.h"
#include "support/refusal.h"

namespace cmoe {
namespace {

const std::string kFixtures = std::string(CMOE_SOURCE_DIR) + "/tests/model/fixtures/";

std::vector<int32_t> golden_ids(const std::string& name) {
  std::ifstream file(kFixtures + name + "/golden_ids.txt");
  std::vector<int32_t> ids;
  for (int32_t id; file >> id;) ids.push_back(id);
  return ids;
}

std::vector<float> golden_logits(const std::string& name) {
  const std::string bytes = read_file(kFixtures + name + "/golden_logits.f32");
  std::vector<float> logits(bytes.size() / 4);
  std::memcpy(logits.data(), bytes.data(), bytes.size());
  return logits;
}

Transformer load(const std::string& name, DType dtype = DType::f32) {
  return Transformer(open_checkpoint(kFixtures + name), make_cpu_backend(), dtype);
}

// Logits of all `ids`, fed to the model in steps of the given sizes.
std::vector<float> logits_in_steps(const Transformer& model, const std::vector<int32_t>& ids,
                                   const std::vector<int64_t>& steps) {
  KvCache cache(model.config(), static_cast<int64_t>(ids.size()));
  std::vector<float> all;
  size_t at = 0;
  for (int64_t size : steps) {
    const SequenceStep step{.tokens = std::span(ids).subspan(at, static_cast<size_t>(size)), .cache = &cache};
    const Tensor logits = model.logits(model.forward(Batch(std::span(&step, 1))));
    all.insert(all.end(), logits.span<float>().begin(), logits.span<float>().end());
    at += static_cast<size_t>(size);
  }
  return all;
}

class Golden : public ::testing::TestWithParam<const char*> {};

// transformers sums in another order: f32 rounding over a few layers stays far below 2e-4 on logits of size 10.
TEST_P(Golden, LogitsEqualTransformers) {
  const std::vector<int32_t> ids = golden_ids(GetParam());
  const std::vector<float> expected = golden_logits(GetParam());
  ASSERT_FALSE(ids.empty());
  const std::vector<float> logits = logits_in_steps(load(GetParam()), ids, {static_cast<int64_t>(ids.size())});
  ASSERT_EQ(logits.size(), expected.size());
  for (size_t i = 0; i < logits.size(); ++i) ASSERT_NEAR(logits[i], expected[i], 2e-4) << "element " << i;
}

INSTANTIATE_TEST_SUITE_P(Fixtures, Golden,
                         ::testing::Values("tiny-llama", "tiny-llama-scaled", "tiny-cmoe-authors", "tiny-cmoe-healed",
                                           "tiny-cmoe-static", "tiny-cmoe-threshold"));

TEST(Transformer, ResultDoesNotDependOnStepsOrThreads) {
  for (const char* name : {"tiny-llama", "tiny-cmoe-threshold"}) {
    const std::vector<int32_t> ids = golden_ids(name);
    const auto n = static_cast<int64_t>(ids.size());
    const Transformer model = load(name);
    const std::vector<float> whole = logits_in_steps(model, ids, {n});
    EXPECT_EQ(logits_in_steps(model, ids, {1, 3, n - 6, 2}), whole);
    EXPECT_EQ(logits_in_steps(model, ids, std::vector<int64_t>(static_cast<size_t>(n), 1)), whole);
    set_num_threads(3);
    EXPECT_EQ(logits_in_steps(model, ids, {n}), whole);
    set_num_threads(1);
  }
}

TEST(Transformer, SequencesOfABatchDoNotTouchEachOther) {
  const Transformer model = load("tiny-cmoe-threshold");
  const std::vector<int32_t> ids = golden_ids("tiny-cmoe-threshold");
  const std::vector<float> alone = logits_in_steps(model, ids, {static_cast<int64_t>(ids.size())});
  const std::vector<int32_t> other(ids.rbegin(), ids.rend());
  KvCache first(model.config(), static_cast<int64_t>(ids.size())), second(model.config(), static_cast<int64_t>(ids.size())),
      empty(model.config(), 0);
  const std::vector<SequenceStep> steps{{other, &first}, {{}, &empty}, {ids, &second}};
  const Tensor logits = model.logits(model.forward(Batch(steps)));
  const auto n = static_cast<int64_t>(ids.size());
  EXPECT_EQ(std::memcmp(logits.row<float>(n), alone.data(), alone.size() * 4), 0);
}

TEST(Transformer, AnEmptyBatchIsOrdinary) {
  const Transformer model = load("tiny-cmoe-threshold");
  KvCache cache(model.config(), 0);
  const SequenceStep step{.tokens = {}, .cache = &cache};
  EXPECT_EQ(model.forward(Batch(std::span(&step, 1))).dim(0), 0);
}

TEST(Transformer, LossIsThatOfTheLogits) {
  const Transformer model = load("tiny-llama");
  const std::vector<int32_t> ids = golden_ids("tiny-llama");
  KvCache cache(model.config(), static_cast<int64_t>(ids.size()));
  const SequenceStep step{.tokens = ids, .cache = &cache};
  const Tensor hidden = model.forward(Batch(std::span(&step, 1)));
  std::vector<int32_t> targets(ids.begin() + 1, ids.end());
  targets.push_back(-1);
  const std::vector<double> nll = model.token_nll(hidden, targets);
  const Tensor logits = model.logits(hidden);
  for (size_t t = 0; t + 1 < ids.size(); ++t) {
    const float* row = logits.row<float>(static_cast<int64_t>(t));
    double sum = 0;
    for (int64_t i = 0; i < logits.dim(1); ++i) sum += std::exp(static_cast<double>(row[i]));
    EXPECT_NEAR(nll[t], std::log(sum) - row[targets[t]], 1e-5);
  }
  EXPECT_EQ(nll.back(), 0.0);
}

TEST(Transformer, Bf16StaysNearF32) {
  const std::vector<int32_t> ids = golden_ids("tiny-llama");
  const std::vector<float> expected = golden_logits("tiny-llama");
  const std::vector<float> logits = logits_in_steps(load("tiny-llama", DType::bf16), ids, {static_cast<int64_t>(ids.size())});
  double square = 0, error = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    square += std::pow(expected[i], 2);
    error += std::pow(logits[i] - expected[i], 2);
  }
  EXPECT_LT(std::sqrt(error / square), 0.02) << "bf16 keeps 8 bits: about 0.4 % a product, averaged over sums";
}

TEST(Transformer, RefusesTokensAndLengthsThatDoNotFit) {
  const Transformer model = load("tiny-llama");
  KvCache cache(model.config(), 2);
  const std::vector<int32_t> three{1, 2, 3}, unknown{1, 384};
  EXPECT_THAT(refusal([&] {
                const SequenceStep step{.tokens = three, .cache = &cache};
                Batch(std::span(&step, 1));
              }),
              ::testing::HasSubstr("0 + 3 tokens does not fit its KV cache of 2"));
  EXPECT_THAT(refusal([&] {
                const SequenceStep step{.tokens = unknown, .cache = &cache};
                model.forward(Batch(std::span(&step, 1)));
              }),
              ::testing::HasSubstr("token 384 is not in the model's vocabulary of 384"));
}

}  // namespace
}  // namespace cmoe
