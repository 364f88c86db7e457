// Where the program's options come from, seen through what it writes.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <sstream>

#include "base/options.h"
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

// Names of the options and arguments in a help text.
std::set<std::string> options_in(const std::string& help) {
  std::set<std::string> names;
  std::istringstream lines(help);
  for (std::string line; std::getline(lines, line);) {
    const size_t begin = line.starts_with("  --") ? 4 : line.starts_with("  <") ? 3 : 0;
    if (begin > 0) names.insert(line.substr(begin, line.find_first_of(" >", begin) - begin));
  }
  return names;
}

TEST_F(Settings, AVariableThatNobodyKnowsIsRefusedWithTheNearest) {
  const auto refused = [](const std::string& variable) {
    const ProgramResult result = run_cmoe({"doctor"}, {.environment = {variable}});
    EXPECT_EQ(result.code, 2) << variable;
    EXPECT_EQ(result.out, "");
    return result.err;
  };
  EXPECT_EQ(refused("CMOE_SAMPELS=3"), "error: environment CMOE_SAMPELS: unknown; did you mean CMOE_SAMPLES?\n");
  EXPECT_EQ(refused("CMOE_CPUISA=avx2"), "error: environment CMOE_CPUISA: unknown; did you mean CMOE_CPU_ISA?\n");
  EXPECT_EQ(refused("CMOE_UNHEARD_OF_SETTING=1"),
            "error: environment CMOE_UNHEARD_OF_SETTING: unknown; unset it; cmoe COMMAND --help names the options\n");
  EXPECT_EQ(run_cmoe({"doctor", "--help"}, {.environment = {"CMOE_SAMPELS=3"}}).code, 0);
  EXPECT_EQ(run_cmoe({"doctor"}, {.environment = {"CMOELSE=1", "XCMOE_A=1"}}).code, 0);
}

// A variable for another command is no mistake: the program's list of options must hold those of every command.
TEST_F(Settings, VariablesOfOtherCommandsAreAccepted) {
  const std::string usage = run_cmoe({"--help"}).out;
  const std::set<std::string> own = options_in(run_cmoe({"doctor", "--help"}).out);
  std::vector<std::string> environment;
  std::istringstream lines(usage.substr(usage.find("\n\n", usage.find("usage:"))));
  int commands = 0;
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with("  ")) continue;
    ++commands;
    const std::string command = line.substr(2, line.find(' ', 2) - 2);
    for (const std::string& option : options_in(run_cmoe({command, "--help"}).out)) {
      if (!own.contains(option)) environment.push_back(environment_name(option) + "=x");
    }
  }
  EXPECT_GE(commands, 10);
  EXPECT_GT(environment.size(), 50u);
  const ProgramResult result = run_cmoe({"doctor"}, {.environment = environment});
  EXPECT_EQ(result.code, 0) << result.err << "add the option to jobs/variables.cpp";
}

}  // namespace
}  // namespace cmoe
