#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "base/config_file.h"
#include "base/options.h"
#include "support/refusal.h"
#include "support/temporary_directory.h"

namespace cmoe {
namespace {

using ::testing::HasSubstr;
using Strings = std::vector<std::string>;

// A sub-command with one option of each kind.
struct Command {
  std::string model, mode = "exact", note;
  int64_t samples = 8;
  double rate = 0.25;
  bool force = false;
  Strings text{"wiki"}, rest;
  std::map<std::string, std::string> environment;
  Options options{"cmoe carve", "Turns a dense model into a mixture of experts."};

  Command() {
    options.positional("model", &model, "folder of the dense model");
    options.positional_rest("rest", &rest, "more models");
    options.add_choice("mode", &mode, {"exact", "greedy"}, "how neurons are assigned");
    options.add("samples", &samples, "calibration samples", {.least = 1, .most = 1'000'000'000'000});
    options.add("learning_rate", &rate, "step", {.least = 0});
    options.add("force", &force, "replace the output");
    options.add("text", &text, "calibration text");
    options.add("note", &note, "free text");
  }
  bool parse(Strings arguments) {
    std::vector<const char*> argv{"carve"};
    for (const auto& argument : arguments) argv.push_back(argument.c_str());
    return options.parse(static_cast<int>(argv.size()), argv.data(), [this](const char* name) {
      const auto found = environment.find(name);
      return found == environment.end() ? nullptr : found->second.c_str();
    });
  }
  std::string refused(Strings arguments) {
    return refusal([&] { parse(std::move(arguments)); });
  }
};

TEST(Options, DefaultsStayWhenNothingIsGiven) {
  Command c;
  ASSERT_TRUE(c.parse({"in"}));
  EXPECT_EQ(c.model, "in");
  EXPECT_EQ(c.samples, 8);
  EXPECT_EQ(c.rate, 0.25);
  EXPECT_EQ(c.mode, "exact");
  EXPECT_EQ(c.text, Strings{"wiki"});
  EXPECT_FALSE(c.force);
  EXPECT_TRUE(c.options.given("model"));
  EXPECT_FALSE(c.options.given("samples"));
}

TEST(Options, ReadsEveryKindFromTheCommandLine) {
  Command c;
  ASSERT_TRUE(c.parse({"--samples", "9000000000", "in", "--learning_rate=-0.0", "--mode", "greedy", "--force", "--text=a", "b",
                       "--text", "c d", "--note", "-5", "--", "--odd"}));
  EXPECT_EQ(c.samples, 9'000'000'000);
  EXPECT_EQ(c.rate, 0.0);
  EXPECT_EQ(c.mode, "greedy");
  EXPECT_TRUE(c.force);
  EXPECT_EQ(c.text, (Strings{"a", "c d"}));
  EXPECT_EQ(c.model, "in");
  EXPECT_EQ(c.rest, (Strings{"b", "--odd"}));
  EXPECT_EQ(c.note, "-5");
}

TEST(Options, AFlagTakesNoArgument) {
  Command c;
  ASSERT_TRUE(c.parse({"--force", "in"}));
  EXPECT_TRUE(c.force);
  EXPECT_EQ(c.model, "in");
}

TEST(Options, TheStrongerSourceWins) {
  const TemporaryDirectory folder;
  write_text(folder / "a.cfg",
             "# a file\nsamples = 20\nlearning-rate = 0.5 # comment\nmodel = from file\nforce = yes\ntext = x\ntext = y\n");
  Command c;
  c.environment = {{"CMOE_SAMPLES", "30"},
                   {"CMOE_LEARNING_RATE", "0.75"},
                   {"CMOE_MODE", "greedy"},
                   {"CMOE_TEXT", "z"},
                   {"CMOE_UNHEARD", "1"}};
  ASSERT_TRUE(c.parse({"--samples", "10", "--config", folder / "a.cfg", "--force=false"}));
  EXPECT_EQ(c.samples, 10);     // command line over file and environment
  EXPECT_EQ(c.rate, 0.5);       // file over environment
  EXPECT_EQ(c.mode, "greedy");  // environment over default
  EXPECT_EQ(c.model, "from file");
  EXPECT_FALSE(c.force);
  EXPECT_EQ(c.text, (Strings{"x", "y"}));

  Command named_by_environment;
  named_by_environment.environment = {{"CMOE_CONFIG", folder / "a.cfg"}};
  ASSERT_TRUE(named_by_environment.parse({}));
  EXPECT_EQ(named_by_environment.samples, 20);
  EXPECT_TRUE(named_by_environment.force);
}

TEST(Options, EffectiveConfigReadsBack) {
  const TemporaryDirectory folder;
  Command first;
  ASSERT_TRUE(first.parse(
      {"a # b", "--learning-rate", "0.1", "--note", " \"two\"\nlines\\n ", "--text", "1", "--text", "2", "--force"}));
  write_text(folder / "effective.cfg", first.options.effective_config());
  Command second;
  ASSERT_TRUE(second.parse({"--config", folder / "effective.cfg"}));
  EXPECT_EQ(second.options.effective_config(), first.options.effective_config());
  EXPECT_EQ(second.model, "a # b");
  EXPECT_EQ(second.note, first.note);
  EXPECT_EQ(second.rate, 0.1);
  EXPECT_EQ(second.text, (Strings{"1", "2"}));
  EXPECT_TRUE(second.force);
  EXPECT_THAT(first.options.effective_config(), HasSubstr("\nlearning-rate = 0.1\n"));
}

TEST(Options, UnknownNamesSuggestTheNearest) {
  const TemporaryDirectory folder;
  EXPECT_EQ(Command().refused({"in", "--sampels", "5"}), "option --sampels: unknown; did you mean --samples?");
  EXPECT_EQ(Command().refused({"in", "--sampels=5"}), "option --sampels: unknown; did you mean --samples?");
  EXPECT_EQ(Command().refused({"in", "--sample", "5"}), "option --sample: unknown; did you mean --samples?");
  EXPECT_EQ(Command().refused({"in", "--zzzzzz"}), "option --zzzzzz: unknown; see cmoe carve --help");
  EXPECT_EQ(Command().refused({"in", "-q"}), "option -q: unknown; see cmoe carve --help");
  write_text(folder / "b.cfg", "\n\nsample_s = 4\n");
  EXPECT_EQ(Command().refused({"in", "--config", folder / "b.cfg"}),
            folder / "b.cfg" + ":3: key 'sample_s': unknown; did you mean 'samples'?");
}

TEST(Options, BadValuesNameOptionValueAndExpectation) {
  const TemporaryDirectory folder;
  EXPECT_EQ(Command().refused({"in", "--samples", "12a"}),
            "option --samples: '12a'; expected an integer from 1 to 1000000000000");
  EXPECT_EQ(Command().refused({"in", "--samples", "0"}), "option --samples: '0'; expected an integer from 1 to 1000000000000");
  EXPECT_EQ(Command().refused({"in", "--samples", "99999999999999999999"}),
            "option --samples: '99999999999999999999'; expected an integer from 1 to 1000000000000");
  EXPECT_EQ(Command().refused({"in", "--learning-rate", "-1"}), "option --learning-rate: '-1'; expected a number >= 0");
  EXPECT_EQ(Command().refused({"in", "--learning-rate", "nan"}), "option --learning-rate: 'nan'; expected a number >= 0");
  EXPECT_EQ(Command().refused({"in", "--mode", "fast"}), "option --mode: 'fast'; expected one of exact, greedy");
  EXPECT_EQ(Command().refused({"in", "--force=maybe"}), "option --force: 'maybe'; expected true or false");
  EXPECT_EQ(Command().refused({"in", "--samples", "1", "--samples", "2"}),
            "option --samples: given twice ('1' and '2'); expected one value");
  EXPECT_EQ(Command().refused({"in", "--samples"}), "option --samples: no value given; expected N");
  Command environment;
  environment.environment = {{"CMOE_SAMPLES", "many"}};
  EXPECT_EQ(environment.refused({"in"}), "environment CMOE_SAMPLES: 'many'; expected an integer from 1 to 1000000000000");
  write_text(folder / "c.cfg", "samples = many\n");
  EXPECT_EQ(Command().refused({"in", "--config", folder / "c.cfg"}),
            folder / "c.cfg" + ":1: key 'samples': 'many'; expected an integer from 1 to 1000000000000");
}

TEST(Options, MissingAndSurplusArgumentsAreRefused) {
  EXPECT_EQ(Command().refused({}), "argument <model>: missing; expected folder of the dense model; see cmoe carve --help");
  std::string only;
  int64_t seed = 0;
  Options options("cmoe x", "X.");
  options.positional("only", &only, "the one");
  options.add("seed", &seed, "a number");
  options.require("seed");
  const char* two[] = {"x", "a", "b"};
  const char* one[] = {"x", "a"};
  const auto nothing = [](const char*) -> const char* { return nullptr; };
  EXPECT_EQ(refusal([&] { options.parse(3, two, nothing); }), "argument 'b': not expected; see cmoe x --help");
  EXPECT_EQ(refusal([&] { options.parse(2, one, nothing); }), "option --seed: missing; expected a number; see cmoe x --help");
  EXPECT_EQ(refusal([&] { options.add("seed", &seed, "again"); }), "option --seed: declared twice");
  EXPECT_EQ(refusal([&] { options.given("sed"); }), "option --sed: not declared");
  EXPECT_EQ(Command().refused({"in", "--config", "/no/such.cfg"}),
            "option --config: '/no/such.cfg' cannot be read; expected a file of key = value lines");
  EXPECT_THAT(Command().refused({"in", "--config", "/"}), HasSubstr("cannot be read"));
}

TEST(Options, HelpShowsUsageAndDefaults) {
  for (const char* asked : {"--help", "-h"}) {
    Command c;
    EXPECT_FALSE(c.parse({asked}));
    const std::string help = c.options.help();
    EXPECT_THAT(help, HasSubstr("usage: cmoe carve <model> [<rest>...] [options]\n\nTurns a dense model"));
    EXPECT_THAT(help, HasSubstr("  --samples N                 calibration samples (default 8)\n"));
    EXPECT_THAT(help, HasSubstr("--mode exact|greedy"));
    EXPECT_THAT(help, HasSubstr("--learning-rate X           step (default 0.25)"));
    EXPECT_THAT(help, HasSubstr("replace the output\n"));
  }
}

TEST(ConfigFile, RefusesWhatIsNotALine) {
  EXPECT_EQ(refusal([] { parse_config("a = 1\nnonsense\n", "f.cfg"); }), "f.cfg:2: 'nonsense'; expected key = value");
  EXPECT_EQ(refusal([] { parse_config("= 1", "f.cfg"); }), "f.cfg:1: '= 1'; expected key = value");
  EXPECT_EQ(refusal([] { parse_config("a = \"open", "f.cfg"); }), "f.cfg:1: no closing quote; expected \"...\"");
  EXPECT_EQ(refusal([] { parse_config("a = \"b\" c", "f.cfg"); }),
            "f.cfg:1: 'c' after the closing quote; expected the end of the line");
  const auto lines = parse_config("\r\n a=b#c # d\r\n#x = 1\nempty =\nq = \"#\" # e", "f.cfg");
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[0].value, "b#c");
  EXPECT_EQ(lines[0].line, 2);
  EXPECT_EQ(lines[1].value, "");
  EXPECT_EQ(lines[2].value, "#");
}

}  // namespace
}  // namespace cmoe
