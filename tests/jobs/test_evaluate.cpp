#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "support/carved_model.h"
#include "support/program.h"
#include "support/tiny_model.h"

namespace cmoe {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;

const std::string kTasks = std::string(CMOE_SOURCE_DIR) + "/tests/eval/fixtures/tasks";

class EvaluateTasks : public ::testing::Test {
 protected:
  TemporaryDirectory folder_;
  std::string carved_;

  std::string carved() {
    if (carved_.empty()) carved_ = carve_tiny_llama(folder_.path().string());
    return carved_;
  }
  ProgramResult run(std::vector<std::string> more, int ranks = 1) {
    std::vector<std::string> words{"evaluate", "--model", fixture("tiny-llama"), "--quiet"};
    words.insert(words.end(), more.begin(), more.end());
    return run_cmoe(words, {.ranks = ranks});
  }
  std::string refused(std::vector<std::string> more) {
    const ProgramResult result = run(std::move(more));
    EXPECT_EQ(result.code, 2);
    return result.err;
  }
};

TEST_F(EvaluateTasks, ComparesModelsOnAnyNumberOfRanks) {
  json first;
  std::string first_samples;
  for (const int ranks : {1, 2, 3}) {
    const std::string result = folder_ / "result.json", samples = folder_ / "samples.jsonl";
    const ProgramResult done =
        run({"--model", carved(), "--tasks", "piqa,mmlu,lambada_openai,wikitext=" + kTasks + "/wikitext.test.jsonl",
             "--task-data", kTasks, "--json", result, "--log-samples", samples, "--step-tokens", std::to_string(100 * ranks)},
            ranks);
    ASSERT_EQ(done.code, 0) << done.err;
    EXPECT_THAT(done.out, HasSubstr("acc_norm"));
    EXPECT_THAT(done.out, HasSubstr("mmlu_humanities"));
    EXPECT_THAT(done.out, Not(HasSubstr("mmlu_anatomy")));
    json now = json::parse(read_text(result));
    ASSERT_EQ(now["models"].size(), 2u);
    for (json& model : now["models"]) {
      EXPECT_EQ(model["results"]["piqa"].size(), 5u);
      EXPECT_EQ(model["results"]["mmlu_anatomy"]["alias"], "mmlu_anatomy");
      EXPECT_EQ(model["n-samples"]["mmlu"], 9);
      EXPECT_EQ(model["results"]["wikitext"]["bits_per_byte_stderr,none"], "N/A");
      model.erase("seconds");
      model.erase("tokens");  // a shared beginning is read once on each rank
    }
    EXPECT_EQ(now["models"][0]["active_fraction"], 1.0);
    EXPECT_LT(now["models"][1]["active_fraction"], 1.0);
    now.erase("options");
    for (json& model : now["models"]) model.erase("active_fraction");
    if (ranks == 1) {
      first = now;
      first_samples = read_text(samples);
      std::istringstream lines(first_samples);
      std::string line;
      std::getline(lines, line);
      const json sample = json::parse(line);
      EXPECT_EQ(sample["task"], "piqa");
      EXPECT_EQ(sample["arguments"].size(), 2u);
      EXPECT_EQ(sample["resps"].size(), 2u);
      EXPECT_TRUE(sample["target"] == 0 || sample["target"] == 1);
    }
    EXPECT_EQ(now, first);
    EXPECT_EQ(read_text(samples), first_samples);
  }
}

TEST_F(EvaluateTasks, ChatPutsQuestionsIntoTheTemplate) {
  const std::string samples = folder_ / "samples.jsonl";
  const ProgramResult done =
      run({"--tasks", "mmlu", "--task-data", kTasks, "--fewshot", "1", "--chat", "--limit", "1", "--log-samples", samples});
  ASSERT_EQ(done.code, 0) << done.err;
  const std::string lines = read_text(samples);
  const json sample = json::parse(lines.substr(0, lines.find('\n')));
  EXPECT_THAT(sample["arguments"][0][0].get<std::string>(), HasSubstr("<|im_start|>system\nThe following are multiple choice"));
  EXPECT_EQ(sample["arguments"][0][1], "A");
}

TEST_F(EvaluateTasks, CardKeepsItsTablesApart) {
  const std::string text = fixture("text") + "/valid.txt";
  const auto carved_only = [&](std::vector<std::string> words) {
    words.insert(words.begin(), {"evaluate", "--model", carved(), "--quiet", "--update-card"});
    const ProgramResult done = run_cmoe(words);
    EXPECT_EQ(done.code, 0) << done.err;
  };
  for (int round = 0; round < 2; ++round) {
    carved_only({"--perplexity", "--dataset", text, "--seq-len", "64", "--windows", "2"});
    carved_only({"--tasks", "piqa", "--task-data", kTasks, "--limit", "3"});
  }
  const std::string card = read_text(carved() + "/README.md");
  const size_t perplexity = card.find("## Measured perplexity"), tasks = card.find("## Measured tasks");
  ASSERT_LT(perplexity, tasks);
  ASSERT_NE(tasks, std::string::npos);
  const auto count = [&](const std::string& word, size_t from, size_t to) {
    int64_t found = 0;
    for (size_t at = card.find(word, from); at < to; at = card.find(word, at + 1)) ++found;
    return found;
  };
  EXPECT_EQ(count("| valid.txt |", perplexity, tasks), 2);
  EXPECT_EQ(count("| valid.txt |", tasks, card.size()), 0);
  EXPECT_EQ(count("| piqa | 0 | 3 |", tasks, card.size()), 4);  // acc and acc_norm, twice
}

TEST_F(EvaluateTasks, Refusals) {
  EXPECT_THAT(refused({}), HasSubstr("expected --perplexity or --tasks"));
  EXPECT_THAT(refused({"--perplexity", "--tasks", "piqa"}), HasSubstr("expected --perplexity or --tasks, not both"));
  EXPECT_THAT(refused({"--perplexity"}), HasSubstr("no text; expected --dataset FILE"));
  EXPECT_THAT(refused({"--tasks", "piqa", "--dataset", "x"}), HasSubstr("--dataset belongs to --perplexity; leave it out"));
  EXPECT_THAT(refused({"--tasks", "piqa", "--stride", "8"}), HasSubstr("--stride belongs to --perplexity"));
  EXPECT_THAT(refused({"--perplexity", "--fewshot", "1"}), HasSubstr("--fewshot belongs to --tasks; leave it out"));
  EXPECT_THAT(refused({"--tasks", "piqa,piqa", "--task-data", kTasks}), HasSubstr("task piqa is named twice in --tasks"));
  EXPECT_THAT(refused({"--tasks", "piqa,", "--task-data", kTasks}), HasSubstr("task '' is unknown"));
  EXPECT_THAT(refused({"--tasks", "piqa", "--task-data", kTasks, "--seq-len", "1000"}), HasSubstr("--seq-len 1000; "));
  EXPECT_THAT(refused({"--tasks", "piqa", "--task-data", kTasks, "--seq-len", "2"}),
              HasSubstr("expected at most the 2 that the model reads"));
}

}  // namespace
}  // namespace cmoe
