// cmoe evaluate and cmoe generate over ranks that share experts, end to end on a tiny carved model.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "support/files.h"
#include "support/program.h"

namespace cmoe {
namespace {

using ::testing::HasSubstr;

const std::string kFixtures = std::string(CMOE_SOURCE_DIR) + "/tests/model/fixtures/";

nlohmann::json read_json(const std::string& path) { return nlohmann::json::parse(read_bytes(path)); }

class Commands : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new TemporaryDirectory;
    const ProgramResult profiled =
        run_cmoe({"profile", "--model", kFixtures + "tiny-llama", "--dataset", kFixtures + "text/train.txt", "--samples", "4",
                  "--seq-len", "64", "--out", at("p.h5")});
    ASSERT_EQ(profiled.code, 0) << profiled.err;
    const ProgramResult carved = run_cmoe(
        {"carve", "--model", kFixtures + "tiny-llama", "--profile", at("p.h5"), "--experts", "S3A3E8", "--out", at("carved")});
    ASSERT_EQ(carved.code, 0) << carved.err;
  }
  static void TearDownTestSuite() {
    delete folder_;
    folder_ = nullptr;
  }

  static std::string at(const std::string& name) { return *folder_ / name; }

  static ProgramResult evaluate(int ranks, std::vector<std::string> more) {
    std::vector<std::string> words{
        "evaluate",  "--perplexity", "--model",   at("carved"), "--dataset", kFixtures + "text/valid.txt",
        "--seq-len", "32",           "--windows", "6",          "--json",    at("result.json")};
    words.insert(words.end(), more.begin(), more.end());
    return run_cmoe(words, {.ranks = ranks});
  }
  static nlohmann::json losses(int ranks, const std::vector<std::string>& more) {
    std::filesystem::remove(at("result.json"));
    const ProgramResult result = evaluate(ranks, more);
    EXPECT_EQ(result.code, 0) << result.err;
    return read_json(at("result.json"))["models"][0]["nll"];
  }
  static ProgramResult generate(int ranks, std::vector<std::string> more) {
    more.insert(more.begin(), {"generate", "--model", at("carved"), "--quiet"});
    return run_cmoe(more, {.ranks = ranks});
  }

  static TemporaryDirectory* folder_;
};

TemporaryDirectory* Commands::folder_ = nullptr;

TEST_F(Commands, PerplexityIsEqualToTheBitForAnySpread) {
  const nlohmann::json expected = losses(1, {});
  ASSERT_EQ(expected.size(), 6u);
  EXPECT_EQ(losses(2, {"--dispatcher", "all_to_all"}), expected);
  EXPECT_EQ(losses(3, {"--dispatcher", "all_gather", "--placement", "balanced"}), expected);
  EXPECT_EQ(losses(4, {"--expert-parallel", "2", "--placement", "balanced", "--redundant-experts", "2"}), expected);
  EXPECT_EQ(losses(8, {"--placement", "balanced", "--redundant-experts", "3"}), expected);
  EXPECT_EQ(losses(31, {}), expected);
  EXPECT_NE(losses(2, {"--wire-dtype", "bf16"}), expected);
}

TEST_F(Commands, TextIsEqualForAnyNumberOfRanks) {
  const std::vector<std::string> greedy{"--prompt", "Bo paints the", "--max-tokens", "12"};
  const std::string expected = generate(1, greedy).out;
  EXPECT_GT(expected.size(), 5u);
  EXPECT_EQ(generate(2, greedy).out, expected);
  EXPECT_EQ(generate(5, greedy).out, expected);
}

TEST_F(Commands, ABatchGivesWhatEachPromptGivesAlone) {
  write_bytes(at("prompts.jsonl"),
              "{\"prompt\": \"Bo paints the\"}\n\n{\"prompt\": \"There are 2\", \"max_tokens\": 5, \"seed\": 3}\n"
              "{\"prompt\": \"Where is the forest?\", \"chat\": true}\n");
  const auto alone = [&](std::vector<std::string> words, const char* max_tokens) {
    words.insert(words.end(), {"--temperature", "0.8", "--max-tokens", max_tokens});
    return generate(1, words).out;
  };
  const std::vector<std::string> expected{alone({"--prompt", "Bo paints the"}, "9"),
                                          alone({"--prompt", "There are 2", "--seed", "3"}, "5"),
                                          alone({"--prompt", "Where is the forest?", "--chat"}, "9")};
  for (const int ranks : {1, 2}) {
    const ProgramResult result = generate(ranks, {"--batch", at("prompts.jsonl"), "--out", at("answers.jsonl"), "--max-batch",
                                                  "1", "--temperature", "0.8", "--max-tokens", "9"});
    ASSERT_EQ(result.code, 0) << result.err;
    std::istringstream lines(read_bytes(at("answers.jsonl")));
    std::vector<std::string> texts;
    for (std::string line; std::getline(lines, line);) {
      const nlohmann::json answer = nlohmann::json::parse(line);
      texts.push_back(answer.at("text").get<std::string>() + "\n");
      EXPECT_GT(answer.at("usage").at("prompt_tokens").get<int>(), 0);
      EXPECT_LE(answer.at("usage").at("completion_tokens").get<int>(), 9);
    }
    EXPECT_EQ(texts, expected);
  }
}

TEST_F(Commands, StatisticsAndTraceTellOfEveryLayer) {
  const ProgramResult result = evaluate(2, {"--moe-stats", at("stats.json"), "--trace", at("trace.json")});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("MoE layers of"));
  const nlohmann::json stats = read_json(at("stats.json"));
  ASSERT_EQ(stats.at("layers").size(), 3u);
  for (const auto& layer : stats["layers"]) {
    EXPECT_EQ(layer.at("tokens"), 6 * 32);
    EXPECT_EQ(layer.at("tokens_per_expert").size(), 5u);
    EXPECT_GT(layer.at("bytes").at("total"), 0);
  }
  // A name for each rank, and six stages of 3 layers in 3 steps on both.
  EXPECT_EQ(read_json(at("trace.json")).at("traceEvents").size(), 2u + 6 * 3 * 3 * 2);
}

TEST_F(Commands, ADryRunPlansForRanksThatAreNotThere) {
  const ProgramResult plan = run_cmoe({"evaluate", "--perplexity", "--model", at("carved"), "--dataset", "none", "--dry-run",
                                       "--expert-parallel", "3", "--placement", "balanced", "--plan-link", "400g"});
  ASSERT_EQ(plan.code, 0) << plan.err;
  EXPECT_THAT(plan.out, HasSubstr("on groups of 3 ranks"));
  EXPECT_THAT(plan.out, HasSubstr("expected on the wire"));
  EXPECT_THAT(plan.out, HasSubstr("70B S3A3E8"));
  const ProgramResult other = generate(1, {"--dry-run", "--expert-parallel", "2"});
  EXPECT_THAT(other.out, HasSubstr("on groups of 2 ranks")) << other.err;
}

TEST_F(Commands, RefusalsNameTheRemedy) {
  const auto refusal = [](const ProgramResult& result) {
    EXPECT_EQ(result.code, 2) << result.out;
    return result.err;
  };
  EXPECT_THAT(refusal(evaluate(3, {"--expert-parallel", "2"})),
              HasSubstr("groups of 2 ranks; expected a divisor of the world's 3"));
  EXPECT_THAT(refusal(evaluate(1, {"--redundant-experts", "1"})), HasSubstr("expected 0, or --placement balanced"));
  EXPECT_THAT(refusal(generate(1, {})), HasSubstr("expected either --prompt or --batch"));
  EXPECT_THAT(refusal(generate(1, {"--batch", at("p.jsonl")})), HasSubstr("--batch and --out go together"));
  const auto batch = [&](const std::string& text, std::vector<std::string> more = {}) {
    write_bytes(at("wrong.jsonl"), text);
    more.insert(more.begin(), {"--batch", at("wrong.jsonl"), "--out", at("none.jsonl")});
    const std::string message = refusal(generate(1, more));
    EXPECT_FALSE(std::filesystem::exists(at("none.jsonl")));
    return message;
  };
  EXPECT_THAT(batch("{\"prompt\": \"a\"}\n[1]\n"), HasSubstr("wrong.jsonl: line 2: expected a JSON object with a \"prompt\""));
  EXPECT_THAT(batch("{\"prompt\": 1}\n"), HasSubstr("line 1: prompt is 1; expected a text"));
  EXPECT_THAT(batch("{\"prompt\": \"a\", \"max_tokens\": 0}\n"), HasSubstr("max_tokens is 0; expected a number from 1 on"));
  EXPECT_THAT(batch("{\"prompt\": \"a\", \"top\": 0}\n"), HasSubstr("key \"top\" is unknown"));
  EXPECT_THAT(batch("{\"prompt\": \"a\"}\n", {"--max-memory", "1"}), HasSubstr("expected at most --max-memory 1.0 MiB"));
}

}  // namespace
}  // namespace cmoe
