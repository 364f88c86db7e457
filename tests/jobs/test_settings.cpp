// Where the program's options come from, seen through what it writes.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/program.h"
#include "support/tiny_model.h"
#include "tensor/hdf5.h"

namespace cmoe {
namespace {

using ::testing::HasSubstr;

class Settings : public ::testing::Test {
 protected:
  // Profiles with what `arguments`, `config` and `environment` say; the number of sequences, tokens of each, and marks of a
  // token.
  Shape profiled(const std::string& config, std::vector<std::string> arguments, const std::vector<std::string>& environment) {
    const std::string out = folder_ / "p.h5", file = folder_ / "job.cfg";
    std::filesystem::remove(out);
    write_text(file, config);
    std::vector<std::string> words{"profile", "--out", out, "--quiet"};
    if (!config.empty()) words.insert(words.end(), {"--config", file});
    words.insert(words.end(), arguments.begin(), arguments.end());
    const ProgramResult result = run_cmoe(words, {.environment = environment});
    EXPECT_EQ(result.code, 0) << result.err;
    const H5File profile = H5File::open(out);
    const Shape tokens = profile.shape("tokens");
    return {tokens[0], tokens[1], profile.integer_attribute("/", "k_act")};
  }

  TemporaryDirectory folder_;
  const std::string files_ = "model = " + fixture("tiny-llama") + "\ndataset = " + fixture("text/train.txt") + "\n";
};

TEST_F(Settings, CommandLineOverConfigOverEnvironment) {
  const std::vector<std::string> environment{"CMOE_SAMPLES=2", "CMOE_SEQ_LEN=20", "CMOE_K_ACT=4"};
  EXPECT_EQ(profiled(files_ + "# a comment\nsamples = 3\nseq-len = 30\n", {"--samples", "5"}, environment), (Shape{5, 30, 4}));
}

TEST_F(Settings, TheConfigBesideAnOutputRepeatsIt) {
  const Shape first = profiled(files_ + "samples = 3\nseq_len = 30\n", {"--k-act", "6"}, {});
  const std::string beside = read_text(folder_ / "p.h5.cfg");
  for (const char* line : {"samples = 3\n", "seq-len = 30\n", "k-act = 6\n", "seed = 0\n"})
    EXPECT_THAT(beside, HasSubstr(line));
  const std::vector<uint16_t> markers = H5File::open(folder_ / "p.h5").read_all<uint16_t>("layers/0001/markers_raw");
  EXPECT_EQ(profiled(beside, {}, {}), first);
  EXPECT_EQ(H5File::open(folder_ / "p.h5").read_all<uint16_t>("layers/0001/markers_raw"), markers);
}

TEST_F(Settings, AKeyThatNobodyKnowsIsRefusedWithTheNearest) {
  write_text(folder_ / "bad.cfg", files_ + "sampels = 3\n");
  const ProgramResult config = run_cmoe({"profile", "--config", folder_ / "bad.cfg", "--out", folder_ / "p.h5"});
  EXPECT_EQ(config.code, 2);
  for (const char* part : {"bad.cfg", "sampels", "samples"}) EXPECT_THAT(config.err, HasSubstr(part));
  const ProgramResult value = run_cmoe({"profile", "--out", folder_ / "p.h5"}, {.environment = {"CMOE_SAMPLES=few"}});
  EXPECT_EQ(value.code, 2);
  for (const char* part : {"CMOE_SAMPLES", "few"}) EXPECT_THAT(value.err, HasSubstr(part));
}

}  // namespace
}  // namespace cmoe
