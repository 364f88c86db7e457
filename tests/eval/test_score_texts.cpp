#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/random.h"
#include "data/python_random.h"
#include "eval/score_texts.h"
#include "eval/scoring_plan.h"
#include "support/refusal.h"
#include "support/spread_experts.h"
#include "support/tiny_model.h"
#include "support/world.h"

namespace cmoe {
namespace {

using Questions = std::vector<std::vector<ScoredText>>;

class ScoreTexts : public ::testing::TestWithParam<const char*> {
 protected:
  Communicator& world = test_world();
  std::shared_ptr<const Backend> backend = make_cpu_backend();
  Checkpoint checkpoint = open_checkpoint(fixture(GetParam()));
  PythonRandom random{3};

  std::vector<int32_t> tokens(int64_t count) {
    std::vector<int32_t> made;
    for (int64_t i = 0; i < count; ++i) made.push_back(static_cast<int32_t>(random.below(checkpoint.config.vocab_size)));
    return made;
  }
  static std::vector<int32_t> joined(std::vector<int32_t> a, const std::vector<int32_t>& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
  }
  // Contexts with choices, choices of one token, families that begin alike, single texts, one without any text, equal
  // questions.
  Questions make() {
    Questions questions;
    for (int family = 0; family < 3; ++family) {
      const std::vector<int32_t> beginning = tokens(family == 2 ? 3 : 70 + 20 * family);
      for (int q = 0; q < 5; ++q) {
        const std::vector<int32_t> context = joined(beginning, tokens(4 + 3 * q));
        std::vector<ScoredText> question;
        for (int choice = 0; choice < 2 + q % 3; ++choice)
          question.push_back(
              {.tokens = joined(context, tokens(q == 1 ? 1 : 1 + choice)), .score_from = static_cast<int64_t>(context.size())});
        questions.push_back(question);
      }
    }
    questions.push_back({{.tokens = tokens(120), .score_from = 1}, {.tokens = tokens(40), .score_from = 9}});
    questions.push_back({});
    questions.push_back(questions[0]);
    questions.push_back({{.tokens = tokens(2), .score_from = 1}});
    return questions;
  }
  // Each text alone, in one step, from its logits.
  TextScore plain(const Transformer& model, const ScoredText& text) {
    KvCache cache(model.config(), static_cast<int64_t>(text.tokens.size()));
    const SequenceStep step{.tokens = text.tokens, .cache = &cache};
    const Tensor logits = model.logits(model.forward(Batch(std::span(&step, 1))));
    TextScore score;
    for (auto t = static_cast<size_t>(text.score_from); t < text.tokens.size(); ++t) {
      const float* row = logits.row<float>(static_cast<int64_t>(t) - 1);
      double total = 0;
      for (int64_t i = 0; i < logits.dim(1); ++i) {
        total += std::exp(static_cast<double>(row[i]));
        if (row[i] > row[text.tokens[t]]) score.greedy = false;
      }
      score.log_likelihood += row[text.tokens[t]] - std::log(total);
    }
    return score;
  }
};

TEST_P(ScoreTexts, EqualsEachTextAlone) {
  const Transformer model(checkpoint, backend, DType::f32);
  Questions questions = make();
  // A text that greedy decoding would write.
  ScoredText greedy{.tokens = tokens(5), .score_from = 5};
  for (int i = 0; i < 3; ++i) {
    for (int32_t next = 0; next < checkpoint.config.vocab_size; ++next) {
      ScoredText longer{.tokens = joined(greedy.tokens, {next}), .score_from = static_cast<int64_t>(greedy.tokens.size())};
      if (!plain(model, longer).greedy) continue;
      greedy.tokens = longer.tokens;
      break;
    }
  }
  ASSERT_EQ(greedy.tokens.size(), 8u);
  questions.push_back({greedy});
  const auto scores = score_texts(model, questions, {.greedy = true}, world);
  ASSERT_EQ(scores.size(), questions.size());
  for (size_t q = 0; q < questions.size(); ++q) {
    ASSERT_EQ(scores[q].size(), questions[q].size());
    for (size_t t = 0; t < questions[q].size(); ++t) {
      const TextScore expected = plain(model, questions[q][t]);
      EXPECT_NEAR(scores[q][t].log_likelihood, expected.log_likelihood,
                  2e-5 * static_cast<double>(questions[q][t].tokens.size()));
      EXPECT_EQ(scores[q][t].greedy, expected.greedy) << "question " << q << " text " << t;
    }
  }
  EXPECT_TRUE(scores.back()[0].greedy);
}

TEST_P(ScoreTexts, DoesNotDependOnRanksOrLimits) {
  const auto same = [](const std::vector<std::vector<TextScore>>& a, const std::vector<std::vector<TextScore>>& b) {
    ASSERT_EQ(a.size(), b.size());
    for (size_t q = 0; q < a.size(); ++q) {
      for (size_t t = 0; t < a[q].size(); ++t) {
        EXPECT_EQ(a[q][t].log_likelihood, b[q][t].log_likelihood) << "question " << q << " text " << t;
        EXPECT_EQ(a[q][t].greedy, b[q][t].greedy);
      }
    }
  };
  const Questions questions = make();
  const Transformer one(checkpoint, backend, DType::f32);
  const auto alone = world.split(world.rank());
  const auto expected = score_texts(one, questions, {.greedy = true}, *alone);
  for (const ScoringLimits limits :
       {ScoringLimits{.greedy = true}, ScoringLimits{.step_tokens = 7, .cache_bytes = 1, .greedy = true},
        ScoringLimits{.step_tokens = 1, .greedy = true}}) {
    int64_t rows = 0, all_rows = -1;
    same(score_texts(one, questions, limits, world, nullptr,
                     [&](int64_t done, int64_t all) {
                       rows += done;
                       all_rows = all;
                     }),
         expected);
    EXPECT_EQ(rows, all_rows);
  }
  if (!checkpoint.config.moe) return;
  for (const int group_size : {world.size(), 2}) {
    if (world.size() % group_size != 0) continue;
    const SpreadExperts spread(checkpoint.config, world, group_size);
    const Transformer model(checkpoint, backend, DType::f32, Transformer::LoadFfn::yes, spread.parallel);
    same(score_texts(model, questions, {.step_tokens = 50, .greedy = true}, world), expected);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, ScoreTexts, ::testing::Values("tiny-llama", "tiny-cmoe-threshold"));

TEST(ScoreTextsRefusals, LogitsThatAreNotFinite) {
  const TemporaryDirectory folder;
  write_tiny_variant(folder / "model", [](auto& tensors, auto&) {
    for (float& weight : tensors["model.norm.weight"].template span<float>()) weight = std::numeric_limits<float>::max();
  });
  const Transformer model(open_checkpoint(folder / "model"), make_cpu_backend(), DType::f32);
  const Questions questions{{{.tokens = {1, 2, 3}, .score_from = 2}}};
  const auto alone = test_world().split(test_world().rank());
  EXPECT_THAT(refusal([&] { score_texts(model, questions, {}, *alone); }),
              ::testing::AllOf(::testing::HasSubstr("token 3 has the log likelihood "),
                               ::testing::HasSubstr("the model's logits are not finite")));
}

TEST(ScoringPlan, ReadsWhatQuestionsShareOnce) {
  // Four questions with 100 tokens in common, each with 10 of its own and choices that differ in their one token.
  Questions questions;
  for (int32_t q = 0; q < 4; ++q) {
    std::vector<int32_t> context(100, 5);
    context.insert(context.end(), 10, 10 + q);
    std::vector<ScoredText> question;
    for (int32_t choice = 0; choice < 4; ++choice) {
      question.push_back({.tokens = context, .score_from = 110});
      question.back().tokens.push_back(choice);
    }
    questions.push_back(question);
  }
  std::vector<QuestionShape> shapes;
  for (const auto& question : questions) shapes.push_back(shape_of(question));
  EXPECT_EQ(shapes[0].runs, (std::vector<std::vector<size_t>>{{0, 1, 2, 3}}));
  EXPECT_EQ(shapes[0].shared, 109);
  const auto rows = [&](int64_t step_tokens, int64_t cache_tokens, int ranks) {
    std::vector<std::vector<int64_t>> found;
    for (const ScoringPlan& plan : plan_scoring(questions, shapes, step_tokens, cache_tokens, ranks))
      found.push_back(plan.step_rows);
    return found;
  };
  using Rows = std::vector<std::vector<int64_t>>;
  EXPECT_EQ(rows(1000, 1000, 1), (Rows{{100, 40}}));
  EXPECT_EQ(rows(64, 1000, 1), (Rows{{64, 36, 40}}));
  EXPECT_EQ(rows(1000, 220, 1), (Rows{{100, 20, 20}}));  // caches of two questions
  EXPECT_EQ(rows(1000, 1000, 2), (Rows{{100, 20}, {100, 20}}));
  EXPECT_EQ(rows(1000, 1000, 8).size(), 8u);
}

TEST(ScoringPlan, RefusesTextsThatPredictNothing) {
  EXPECT_THAT(refusal([] {
                shape_of({{.tokens = {1, 2, 3}, .score_from = 3}});
              }),
              ::testing::HasSubstr("a text of 3 tokens predicts nothing from token 3 on"));
}

}  // namespace
}  // namespace cmoe
