#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "support/carved_model.h"
#include "support/program.h"
#include "support/tiny_model.h"

namespace cmoe {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

class Analyze : public ::testing::Test {
 protected:
  TemporaryDirectory folder_;
  std::string carved_;

  std::string carved() {
    if (carved_.empty()) carved_ = carve_tiny_llama(folder_.path().string());
    return carved_;
  }
};

TEST_F(Analyze, WritesTheSameReportOnAnyNumberOfRanks) {
  const std::string model = carved();
  json first;
  for (const int ranks : {1, 2, 3, 4}) {
    const ProgramResult done = run_cmoe({"analyze", "--model", model, "--dataset", fixture("text") + "/valid.txt", "--windows",
                                         "5", "--seq-len", "40", "--out", folder_ / "report", "--force", "--quiet"},
                                        {.ranks = ranks});
    ASSERT_EQ(done.code, 0) << done.err;
    EXPECT_THAT(done.out, HasSubstr("Spearman"));
    json now = json::parse(read_text(folder_ / "report/analysis.json"));
    now.erase("options");
    EXPECT_EQ(now["layers"].size(), 3u);
    EXPECT_EQ(now["layers"][2]["outputs"]["tokens"], 200);
    EXPECT_TRUE(now["layers"][0]["weights"]["gate"].contains("matched"));
    EXPECT_EQ(now["prompt"]["routing"].size(), 3u);
    EXPECT_EQ(now["prompt"]["routing"][0].size(), now["prompt"]["tokens"].size());
    if (ranks == 1) first = now;
    EXPECT_EQ(now, first);
    EXPECT_THAT(read_text(folder_ / "report/report.html"), HasSubstr("<h3>Layer 2</h3>"));
  }
  const ProgramResult weights =
      run_cmoe({"analyze", "--model", model, "--prompt", "", "--match-layers", "1", "--out", folder_ / "weights"});
  ASSERT_EQ(weights.code, 0) << weights.err;
  const json alone = json::parse(read_text(folder_ / "weights/analysis.json"));
  EXPECT_FALSE(alone["layers"][0].contains("outputs"));
  EXPECT_TRUE(alone["layers"][0]["weights"]["up"].contains("matched"));
  EXPECT_FALSE(alone["layers"][2]["weights"]["up"].contains("matched"));

  for (const int ranks : {1, 2}) {
    const ProgramResult exists = run_cmoe({"analyze", "--model", model, "--out", folder_ / "report"}, {.ranks = ranks});
    EXPECT_EQ(exists.code, 2);
    EXPECT_THAT(exists.err, HasSubstr("report/: exists; pass --force"));
  }
}

TEST_F(Analyze, RefusesADenseModel) {
  const ProgramResult done = run_cmoe({"analyze", "--model", fixture("tiny-llama"), "--out", folder_ / "x"});
  EXPECT_EQ(done.code, 2);
  EXPECT_THAT(done.err, HasSubstr("tiny-llama: has no routed experts; analyze takes a carved model"));
}

}  // namespace
}  // namespace cmoe
