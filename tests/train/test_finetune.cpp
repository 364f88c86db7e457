// The program from carving to a healed model, killed on the way.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <csignal>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <thread>

#include "support/files.h"
#include "support/spawned_job.h"

namespace cmoe {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

const std::string kFixtures = std::string(CMOE_SOURCE_DIR) + "/tests/model/fixtures/";

using Words = std::vector<std::string>;

// Starts `cmoe words...` with its messages in `log`.
pid_t start(const Words& words, const std::filesystem::path& log) {
  const char* binary = std::getenv("CMOE_BINARY");
  const pid_t child = fork();
  if (child != 0) return child;
  if (!freopen(log.c_str(), "a", stdout) || !freopen(log.c_str(), "a", stderr)) _exit(126);
  std::vector<char*> arguments{const_cast<char*>(binary)};
  for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  execv(binary, arguments.data());
  _exit(127);
}

// The exit code; -1 when a signal ended it.
int wait_for(pid_t child) {
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

class Finetune : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!std::getenv("CMOE_BINARY")) GTEST_SKIP() << "CMOE_BINARY does not name the program";
    const std::string dense = kFixtures + "tiny-llama";
    expect_success({"profile", "--model", dense, "--dataset", kFixtures + "text/train.txt", "--seq-len", "64", "--samples",
                    "16", "--out", path("profile.h5")});
    expect_success(
        {"carve", "--model", dense, "--profile", path("profile.h5"), "--experts", "S1A1E10", "--out", path("carved")});
  }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  std::string messages() const { return read_bytes(folder_ / "messages"); }
  int run(const Words& words) { return wait_for(start(words, folder_ / "messages")); }
  void expect_success(const Words& words) { ASSERT_EQ(run(words), 0) << words[0] << ":\n" << messages(); }

  // The common command; options in `more` (name, value) take the place of its own, names without a value are flags.
  Words finetune(const std::string& out, const Words& more = {}) const {
    std::map<std::string, std::string> options{{"--model", path("carved")}, {"--dataset", kFixtures + "text/train.txt"},
                                               {"--samples", "40"},         {"--seq-len", "64"},
                                               {"--batch-size", "4"},       {"--lr", "2e-3"},
                                               {"--scale-lr", "1e-2"},      {"--threads", "1"},
                                               {"--out", path(out)}};
    Words words{"finetune"};
    for (size_t i = 0; i < more.size(); ++i) {
      if (i + 1 == more.size() || more[i + 1].starts_with("--")) {
        words.push_back(more[i]);
      } else {
        options[more[i]] = more[i + 1];
        ++i;
      }
    }
    for (const auto& [name, value] : options) words.insert(words.end(), {name, value});
    return words;
  }
  std::vector<nlohmann::json> log_of(const std::string& out) const {
    std::vector<nlohmann::json> lines;
    std::istringstream text(read_bytes(folder_ / (out + "/log.jsonl")));
    for (std::string line; std::getline(text, line);) lines.push_back(nlohmann::json::parse(line));
    return lines;
  }

  TempFolder folder_;
};

TEST_F(Finetune, HealsAndMerges) {
  expect_success(
      finetune("tuned", {"--eval-dataset", kFixtures + "text/valid.txt", "--eval-every", "5", "--eval-windows", "16"}));
  std::vector<double> held_out;
  int64_t steps = 0;
  for (const nlohmann::json& line : log_of("tuned")) {
    if (line.contains("eval_nll")) held_out.push_back(line["eval_nll"]);
    if (!line.contains("loss")) continue;
    EXPECT_EQ(line["step"], ++steps);
    EXPECT_GE(line["max_over_mean_load"].get<double>(), 1.0);
    EXPECT_GT(line["tokens_per_s"].get<double>(), 0);
  }
  EXPECT_EQ(steps, 10);
  ASSERT_EQ(held_out.size(), 3u);
  EXPECT_LT(held_out.back(), held_out.front() - 0.05) << ::testing::PrintToString(held_out);

  expect_success({"merge", "--model", path("carved"), "--adapter", path("tuned"), "--dtype", "f32", "--out", path("merged")});
  expect_success({"evaluate", "--perplexity", "--model", path("merged"), "--model", path("carved"), "--dataset",
                  kFixtures + "text/valid.txt", "--seq-len", "64", "--windows", "16", "--json", path("score.json")});
  const nlohmann::json score = nlohmann::json::parse(read_bytes(folder_ / "score.json"));
  EXPECT_NEAR(score["models"][0]["nll_mean"].get<double>(), held_out.back(), 1e-5);
  EXPECT_NEAR(score["models"][1]["nll_mean"].get<double>(), held_out.front(), 1e-5);
  const nlohmann::json config = nlohmann::json::parse(read_bytes(folder_ / "merged/config.json"));
  EXPECT_EQ(config["router_scale"], true);
  EXPECT_EQ(config["router_selection_bias"], true);
}

TEST_F(Finetune, StopsOnSigtermAndResumesToTheSameBytes) {
  expect_success(finetune("whole"));
  const pid_t child = start(finetune("cut", {"--save-every", "0"}), folder_ / "messages");
  while (!std::filesystem::exists(folder_ / "cut/log.jsonl") || read_bytes(folder_ / "cut/log.jsonl").empty())
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  kill(child, SIGTERM);
  const int code = wait_for(child);
  if (code == 75) {  // it may have been done before the signal came
    EXPECT_THAT(messages(), HasSubstr("run the same command with --resume"));
    expect_success(finetune("cut", {"--save-every", "0", "--resume"}));
  } else {
    EXPECT_EQ(code, 0) << messages();
  }
  for (const char* name : {"adapter_model.safetensors", "router.safetensors"})
    EXPECT_EQ(read_bytes(folder_ / ("cut/" + std::string(name))), read_bytes(folder_ / ("whole/" + std::string(name)))) << name;
  EXPECT_EQ(log_of("cut").size(), 10u);
  EXPECT_EQ(log_of("cut")[9]["loss"], log_of("whole")[9]["loss"]);
}

// One step and a long calibration of the thresholds: there the signal finds it, the step being saved.
TEST_F(Finetune, StopsWhileThresholdsAreCalibrated) {
  const Words options{"--samples", "400", "--batch-size", "400", "--threshold-samples", "400"};
  expect_success(finetune("whole", options));
  Words resumed = options;
  resumed.push_back("--resume");
  int code = 0;
  for (int attempt = 0; attempt < 5 && code == 0; ++attempt) {  // the signal may come too late
    std::filesystem::remove_all(folder_ / "cut");
    const pid_t child = start(finetune("cut", options), folder_ / "messages");
    while (!std::filesystem::exists(folder_ / "cut/checkpoint-00000001/manifest.json"))
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    kill(child, SIGTERM);
    code = wait_for(child);
  }
  EXPECT_EQ(code, 75) << messages();
  EXPECT_THAT(messages(), HasSubstr("SIGTERM: saved after step 1 of 1; run the same command with --resume"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "cut/adapter_model.safetensors"));
  expect_success(finetune("cut", resumed));
  for (const char* name : {"adapter_model.safetensors", "router.safetensors"})
    EXPECT_EQ(read_bytes(folder_ / ("cut/" + std::string(name))), read_bytes(folder_ / ("whole/" + std::string(name)))) << name;
}

// Three steps with the experts on two ranks, the others with them on three.
TEST_F(Finetune, ExpertsSpreadOverRanksGiveTheSameBytes) {
  const Words held_out{"--eval-dataset", kFixtures + "text/valid.txt", "--eval-every", "5", "--samples", "20"};
  expect_success(finetune("whole", held_out));
  const auto on = [&](const std::string& ranks, Words options) {
    options.insert(options.begin(), held_out.begin(), held_out.end());
    Words words{"mpirun", "-n", ranks, std::getenv("CMOE_BINARY")};
    for (const std::string& word : finetune("spread", options)) words.push_back(word);
    SpawnedJob job(words, folder_.path().string());
    EXPECT_EQ(job.wait(60), 0) << job.err();
    return job.err();
  };
  EXPECT_THAT(on("2", {"--save-every", "3"}), HasSubstr("groups of 2 ranks share the experts"));
  std::filesystem::remove_all(folder_ / "spread/checkpoint-00000005");
  EXPECT_THAT(on("3", {"--dispatcher", "all_gather", "--placement", "contiguous", "--recompute", "--resume"}),
              HasSubstr("resumed from step 3"));
  for (const char* name : {"adapter_config.json", "adapter_model.safetensors", "router.safetensors"})
    EXPECT_EQ(read_bytes(folder_ / ("spread/" + std::string(name))), read_bytes(folder_ / ("whole/" + std::string(name))))
        << name;
  ASSERT_EQ(log_of("spread").size(), log_of("whole").size());
  for (size_t i = 0; i < log_of("whole").size(); ++i) {
    for (const char* key : {"loss", "eval_nll", "grad_norm", "layer_loads"})
      EXPECT_EQ(log_of("spread")[i][key], log_of("whole")[i][key]);
  }
}

TEST_F(Finetune, StoredRowsOfTheTeacherChangeNothing) {
  const Words distil{"--samples", "8", "--teacher", kFixtures + "tiny-llama", "--distill", "logits"};
  expect_success(finetune("direct", distil));
  Words stored = distil;
  stored.insert(stored.end(), {"--teacher-rows", path("rows")});
  const auto files = [&] {
    std::vector<std::filesystem::path> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder_ / "rows")) names.push_back(entry.path());
    return names;
  };
  for (const char* out : {"first", "second"}) {  // stores them, takes them
    expect_success(finetune(out, stored));
    EXPECT_EQ(files().size(), 8u);
    EXPECT_EQ(read_bytes(folder_ / out / "adapter_model.safetensors"),
              read_bytes(folder_ / "direct/adapter_model.safetensors"));
  }
  for (const auto& name : files()) std::filesystem::resize_file(name, 100);
  EXPECT_EQ(run(finetune("third", stored)), 2);
  EXPECT_THAT(messages(), HasSubstr("rows/"));
  stored[5] = "both";
  EXPECT_EQ(run(finetune("fourth", stored)), 2);
  EXPECT_THAT(messages(), HasSubstr("teacher-rows: kept for --distill logits alone; distill is 'both'"));
}

TEST_F(Finetune, AFinishedRunWritesItsAdapterAgain) {
  const Words options{"--samples", "8", "--resume"};
  expect_success(finetune("out", options));
  const std::string adapter = read_bytes(folder_ / "out/adapter_model.safetensors");
  for (const char* name : {"out/adapter_model.safetensors", "messages"}) std::filesystem::remove(folder_ / name);
  expect_success(finetune("out", options));
  EXPECT_EQ(read_bytes(folder_ / "out/adapter_model.safetensors"), adapter);
  EXPECT_EQ(log_of("out").size(), 2u);
  EXPECT_THAT(messages(), AllOf(HasSubstr("resumed from step 2 of 2: all trained before"), Not(HasSubstr(" tokens in "))));
}

TEST_F(Finetune, KeepsAdaptersOnTheWay) {
  const Words common{"--schedule", "constant", "--threshold-samples", "8"};
  const auto with = [&](Words more) {
    more.insert(more.end(), common.begin(), common.end());
    return more;
  };
  expect_success(finetune("short", with({"--samples", "12"})));
  expect_success(finetune("long", with({"--samples", "24", "--adapter-every", "3"})));
  for (const char* name : {"adapter_config.json", "adapter_model.safetensors", "router.safetensors"}) {
    EXPECT_EQ(read_bytes(folder_ / "long/adapter-00000003" / name), read_bytes(folder_ / "short" / name)) << name;
    EXPECT_EQ(read_bytes(folder_ / "long/adapter-00000006" / name), read_bytes(folder_ / "long" / name)) << name;
  }
}

TEST_F(Finetune, SurvivesBeingKilledAtAnyMoment) {
  expect_success(finetune("whole"));
  const auto started = std::chrono::steady_clock::now();
  expect_success(finetune("timed", {"--save-every", "1"}));
  const auto whole_run = std::chrono::steady_clock::now() - started;
  // At random moments of a run; CMOE_TEST_KILLS names another number.
  const char* asked = std::getenv("CMOE_TEST_KILLS");
  const int kills = asked ? std::atoi(asked) : std::getenv("CMOE_TEST_SANITIZED") ? 4 : 20;
  std::mt19937 random(1);
  int killed = 0, finished = 0;
  for (int i = 0; i < kills; ++i) {
    if (finished > 0) std::filesystem::remove_all(folder_ / "cut");  // there is nothing to interrupt in a run that is done
    const pid_t child = start(finetune("cut", {"--save-every", "1", "--resume"}), folder_ / "messages");
    std::this_thread::sleep_for(whole_run * static_cast<int>(random() % 1000) / 1000);
    kill(child, SIGKILL);
    const int code = wait_for(child);
    ASSERT_TRUE(code == -1 || code == 0) << messages();  // it goes on from every state that a kill leaves
    killed += code == -1;
    finished = code == 0;
    if (finished) {
      EXPECT_EQ(read_bytes(folder_ / "cut/adapter_model.safetensors"), read_bytes(folder_ / "whole/adapter_model.safetensors"));
    }
  }
  EXPECT_GT(killed, 0);
  expect_success(finetune("cut", {"--save-every", "1", "--resume"}));
  for (const char* name : {"adapter_model.safetensors", "router.safetensors"})
    EXPECT_EQ(read_bytes(folder_ / ("cut/" + std::string(name))), read_bytes(folder_ / ("whole/" + std::string(name)))) << name;
}

// Room for one saved state and a half: the second does not fit, the first stays, and with more room the run goes on from it.
TEST_F(Finetune, AFullDiskKeepsTheLastGoodState) {
  expect_success(finetune("whole", {"--save-every", "1"}));
  int64_t state = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder_ / "whole/checkpoint-00000010"))
    state += static_cast<int64_t>(entry.file_size()) + 4096;
  const std::string disk = path("disk");
  std::filesystem::create_directory(disk);
  const auto mount_with = [&](int64_t bytes, unsigned long flags) {
    return ::mount("tmpfs", disk.c_str(), "tmpfs", flags, ("size=" + std::to_string(bytes)).c_str());
  };
  for (const std::string ranks : {"1", "2"}) {
    SCOPED_TRACE(ranks + " ranks");
    if (mount_with(state * 3 / 2 + 65536, 0) != 0) GTEST_SKIP() << "needs the right to mount a tmpfs";
    const auto run_on_disk = [&](const Words& more) {
      Words words{"mpirun", "-n", ranks, std::getenv("CMOE_BINARY")};
      if (ranks == "1") words = {std::getenv("CMOE_BINARY")};
      for (const std::string& word : finetune("disk/run", more)) words.push_back(word);
      SpawnedJob job(words, folder_.path().string());
      const int code = job.wait(60);
      return std::pair(code, job.err());
    };
    const auto [code, message] = run_on_disk({"--save-every", "1"});
    EXPECT_EQ(code, 1) << message;
    EXPECT_THAT(message, HasSubstr("No space left on device"));
    EXPECT_TRUE(std::filesystem::exists(folder_ / "disk/run/checkpoint-00000001/manifest.json"));
    EXPECT_FALSE(std::filesystem::exists(folder_ / "disk/run/checkpoint-00000002"));
    EXPECT_EQ(mount_with(state * 16, MS_REMOUNT), 0);
    const auto [resumed, log] = run_on_disk({"--save-every", "1", "--resume"});
    EXPECT_EQ(resumed, 0) << log;
    EXPECT_THAT(log, HasSubstr("resumed from step 1 of 10"));
    EXPECT_EQ(read_bytes(folder_ / "disk/run/adapter_model.safetensors"),
              read_bytes(folder_ / "whole/adapter_model.safetensors"));
    ::umount(disk.c_str());
  }
}

TEST_F(Finetune, Refusals) {
  expect_success(finetune("tuned", {"--samples", "4"}));
  EXPECT_EQ(run(finetune("tuned", {"--samples", "4"})), 2);
  EXPECT_THAT(messages(), HasSubstr("pass --resume to go on, or name a new folder"));
  EXPECT_EQ(run(finetune("tuned", {"--samples", "8", "--resume"})), 2);
  EXPECT_THAT(messages(), HasSubstr("was saved by a run with other options"));
  EXPECT_EQ(run(finetune("x", {"--distill", "logits"})), 2);
  EXPECT_THAT(messages(), HasSubstr("distill 'logits' with teacher ''; expected both or neither"));
  EXPECT_EQ(run(finetune("y", {"--lr", "1e30", "--clip", "0"})), 2);
  EXPECT_THAT(messages(), HasSubstr("is not finite; lower the learning rate"));
  EXPECT_EQ(run({"merge", "--model", kFixtures + "tiny-llama", "--adapter", path("tuned"), "--out", path("z")}), 2);
  EXPECT_THAT(messages(), HasSubstr("it was made for another model than"));
}

}  // namespace
}  // namespace cmoe
