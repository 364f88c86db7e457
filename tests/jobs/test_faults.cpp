// Faults hit running jobs: what a rank that is killed, stopped or unhappy does to the others.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "comm/communicator.h"
#include "support/carved_model.h"
#include "support/spawned_job.h"
#include "support/temporary_directory.h"

namespace cmoe {
namespace {

namespace fs = std::filesystem;

using ::testing::HasSubstr;
using ::testing::SizeIs;

const std::string kModel = CMOE_SOURCE_DIR "/tests/model/fixtures/tiny-llama";
const std::string kText = CMOE_SOURCE_DIR "/tests/model/fixtures/text/train.txt";
constexpr double kPromiseS = 10;  // from the fault to the end of all ranks

std::string binary() {
  const char* path = std::getenv("CMOE_BINARY");
  if (!path) throw std::runtime_error("CMOE_BINARY is not set; run this test through ctest");
  return path;
}

// Less of the same work under a sanitizer.
std::string sized(int64_t full) { return std::to_string(std::getenv("CMOE_TEST_SANITIZED") ? full / 8 : full); }

using Words = std::vector<std::string>;

Words operator+(Words a, const Words& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

class Faults : public ::testing::Test {
 protected:
  Words on(int ranks, const Words& command) {
    const Words alone{binary()};
    return (ranks > 1 ? Words{"mpirun", "-n", std::to_string(ranks)} + alone : alone) + command +
           Words{"--threads", "1", "--quiet", "--rank-timeout", "2"};
  }
  // Each takes several seconds when nothing happens.
  Words profile() {
    return {"profile",   "--model",   kModel, "--dataset", kText,      "--samples",
            sized(1200), "--seq-len", "128",  "--out",     out("p.h5")};
  }
  Words evaluate() {
    return {"evaluate",  "--perplexity", "--model",  kModel, "--dataset", kText,
            "--seq-len", "128",          "--stride", "1",    "--json",    out("r.json")};
  }
  Words carve() {
    const std::string file = out("given.h5");
    SpawnedJob job(
        on(1, {"profile", "--model", kModel, "--dataset", kText, "--samples", sized(480), "--seq-len", "128", "--out", file}),
        folder_.path());
    EXPECT_EQ(job.wait(60), 0) << job.err();
    return {"carve", "--model", kModel, "--profile", file, "--experts", "S3A3E8", "--out", out("carved")};
  }
  // The tiny model with room for a long text, and no token that ends it.
  Words generate() {
    const fs::path model = folder_ / "long-model";
    fs::copy(kModel, model, fs::copy_options::recursive | fs::copy_options::overwrite_existing);
    auto config = nlohmann::json::parse(read_text(model / "config.json"));
    config["max_position_embeddings"] = 100000;
    config["eos_token_id"] = config["vocab_size"].get<int>() - 1;
    write_text(model / "config.json", config.dump());
    fs::remove(model / "generation_config.json");
    return {"generate", "--model", model, "--prompt", "the", "--max-tokens", "20000", "--temperature", "0"};
  }
  // One page of text, cut into many windows.
  Words tasks() {
    std::string text;
    for (int i = 0; i < 30; ++i) text += read_text(kText);
    write_text(out("wikitext.jsonl"), nlohmann::json{{"page", text}}.dump());
    return {"evaluate", "--tasks",    "wikitext=" + out("wikitext.jsonl"), "--model", kModel, "--seq-len", "128",
            "--json",   out("r.json")};
  }
  Words analyze() {
    std::string text;
    for (int i = 0; i < 200; ++i) text += read_text(kText);
    write_text(out("long.txt"), text);
    return {"analyze",   "--model",       carve_tiny_llama(folder_.path().string()),
            "--dataset", out("long.txt"), "--windows",
            "0",         "--seq-len",     "128",
            "--out",     out("report")};
  }
  std::string out(const std::string& name) { return folder_ / name; }

  // True once the job is past its preparations: the file it will rename is there (evaluate has none), and the ranks watch.
  std::function<bool()> at_work(const SpawnedJob& job, int ranks, const std::string& product) {
    return [this, &job, ranks, product] {
      for (int r = 0; r < ranks && ranks > 1; ++r) {
        if (job.watching_rank(r) == 0) return false;
      }
      return product.empty() || left_behind(product) > 0;
    };
  }

  // A zombie, which nobody collects in a container without an init process, is dead.
  static bool alive(pid_t pid) {
    const std::string stat = read_text("/proc/" + std::to_string(pid) + "/stat");
    return !stat.empty() && stat.find(") Z ") == std::string::npos;
  }

  // Files and folders that carry more than the final name.
  int left_behind(const std::string& product) const {
    int count = 0;
    for (const auto& entry : fs::directory_iterator(folder_.path())) {
      const std::string name = entry.path().filename().string();
      count += name.starts_with(product + ".") ? 1 : 0;
    }
    return count;
  }

  // Sends `signal` to one rank of a job at work; returns when the job has ended.
  void hit(const Words& command, const std::string& product, int ranks, int victim, int signal, const std::string& sentence) {
    SpawnedJob job(on(ranks, command), folder_.path());
    ASSERT_TRUE(job.wait_until(at_work(job, ranks, product))) << job.err();
    std::this_thread::sleep_for(std::chrono::milliseconds(300));  // the stage is told, and work is under way
    std::vector<pid_t> pids;
    for (int r = 0; r < ranks; ++r) pids.push_back(job.watching_rank(r));
    for (const pid_t pid : pids) ASSERT_GT(pid, 0) << "the job ended before the fault\n" << job.err();
    ::kill(pids[static_cast<size_t>(victim)], signal);
    const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(kPromiseS);
    const int code = job.wait(kPromiseS);
    EXPECT_THAT(code, ::testing::Gt(0)) << "-1: still running\n" << job.err();
    // mpirun may end before the ranks that it killed are gone.
    for (const pid_t pid : pids) {
      while (alive(pid) && std::chrono::steady_clock::now() < until) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      EXPECT_FALSE(alive(pid)) << "a rank lives on";
    }
    const auto causes = job.causes();
    ASSERT_THAT(causes, SizeIs(1)) << job.err();
    EXPECT_THAT(causes[0], HasSubstr("rank " + std::to_string(victim) + " on host " + host_name() + " " + sentence));
    EXPECT_THAT(causes[0], HasSubstr("last seen in " + command[0]));
    EXPECT_FALSE(fs::exists(out(product.empty() ? "r.json" : product)));
  }

  void stop_with(int signal, const Words& command, const std::string& product, int ranks) {
    SpawnedJob job(on(ranks, command), folder_.path());
    ASSERT_TRUE(job.wait_until(at_work(job, ranks, product))) << job.err();
    if (product.empty()) std::this_thread::sleep_for(std::chrono::milliseconds(ranks > 1 ? 200 : 1500));
    // The last rank alone: a scheduler may signal one process before another.
    const pid_t victim = ranks > 1 ? job.watching_rank(ranks - 1) : job.pid();
    ASSERT_GT(victim, 0) << "the job ended before the signal\n" << job.err();
    ::kill(victim, signal);
    EXPECT_EQ(job.wait(30), 75) << job.err();
    EXPECT_THAT(job.causes(), SizeIs(1)) << job.err();
    EXPECT_THAT(job.err(),
                HasSubstr("error: " + command[0] + ": stopped by a signal; nothing was written under its final name\n"));
    EXPECT_EQ(left_behind(product.empty() ? "r.json" : product), 0);
    EXPECT_FALSE(fs::exists(out(product.empty() ? "r.json" : product)));
  }

  TemporaryDirectory folder_;
};

constexpr char kEnded[] = "ended without a word";
constexpr char kSilent[] = "sent no heartbeat for ";

TEST_F(Faults, KilledInProfile) { hit(profile(), "p.h5", 2, 1, SIGKILL, kEnded); }
TEST_F(Faults, KilledFirstRankInProfile) { hit(profile(), "p.h5", 3, 0, SIGKILL, kEnded); }
TEST_F(Faults, StoppedInProfile) { hit(profile(), "p.h5", 2, 1, SIGSTOP, kSilent); }
TEST_F(Faults, KilledInCarve) { hit(carve(), "carved", 2, 1, SIGKILL, kEnded); }
TEST_F(Faults, StoppedFirstRankInCarve) { hit(carve(), "carved", 3, 0, SIGSTOP, kSilent); }
TEST_F(Faults, KilledInEvaluate) { hit(evaluate(), "", 2, 0, SIGKILL, kEnded); }
TEST_F(Faults, StoppedInEvaluate) { hit(evaluate(), "", 3, 1, SIGSTOP, kSilent); }

TEST_F(Faults, KilledInTasks) { hit(tasks(), "", 2, 1, SIGKILL, kEnded); }
TEST_F(Faults, KilledInAnalyze) { hit(analyze(), "report", 2, 1, SIGKILL, kEnded); }

TEST_F(Faults, KilledInGenerate) { hit(generate(), "", 2, 1, SIGKILL, kEnded); }

TEST_F(Faults, TerminatedAlone) {
  stop_with(SIGTERM, profile(), "p.h5", 1);
  stop_with(SIGUSR1, carve(), "carved", 1);
  stop_with(SIGTERM, evaluate(), "", 1);
  stop_with(SIGTERM, generate(), "", 1);
}
TEST_F(Faults, TerminatedProfile) { stop_with(SIGTERM, profile(), "p.h5", 2); }
TEST_F(Faults, TerminatedCarve) { stop_with(SIGTERM, carve(), "carved", 2); }
TEST_F(Faults, TerminatedGenerate) { stop_with(SIGTERM, generate(), "", 2); }
TEST_F(Faults, TerminatedTasks) { stop_with(SIGTERM, tasks(), "", 2); }
TEST_F(Faults, TerminatedAnalyze) { stop_with(SIGTERM, analyze(), "report", 2); }
TEST_F(Faults, TerminatedEvaluate) { stop_with(SIGUSR1, evaluate(), "", 2); }

// Two ranks, each with a model folder and options of its own.
class TwoPrograms : public Faults {
 protected:
  TwoPrograms() {
    for (const char* folder : {"a", "b"}) {
      fs::create_directory(folder_ / folder);
      fs::copy(kModel, folder_ / folder + "/model", fs::copy_options::recursive);
    }
  }
  int run(const Words& first, const Words& second, const std::string& second_program = binary()) {
    const Words common{"evaluate", "--perplexity", "--model", "model",  "--dataset", kText, "--windows",
                       "4",        "--threads",    "1",       "--quiet"};
    job_ = std::make_unique<SpawnedJob>(Words{"mpirun", "-n", "1", "-wdir", folder_ / "a", binary()} + common + first +
                                            Words{":", "-n", "1", "-wdir", folder_ / "b", second_program} + common + second,
                                        folder_.path());
    const int code = job_->wait(kPromiseS);
    EXPECT_THAT(job_->causes(), SizeIs(1)) << job_->err();
    return code;
  }
  std::unique_ptr<SpawnedJob> job_;
};

TEST_F(TwoPrograms, OtherOptionsAreNamed) {
  EXPECT_EQ(run({"--seq-len", "64"}, {"--seq-len", "32"}), 2);
  EXPECT_THAT(job_->err(),
              HasSubstr("error: rank 1 on host " + host_name() +
                        " has another configuration (seq-len = 32) than rank 0 on host " + host_name() + " (seq-len = 64)"));
}

TEST_F(TwoPrograms, AnotherModelIsNamed) {
  fs::remove_all(folder_ / "b/model");
  fs::copy(CMOE_SOURCE_DIR "/tests/model/fixtures/tiny-llama-scaled", folder_ / "b/model");
  EXPECT_EQ(run({"--seq-len", "64"}, {"--seq-len", "64"}), 2);
  EXPECT_THAT(job_->err(), HasSubstr("rank 1 on host " + host_name() + " has another model model ("));
}

TEST_F(TwoPrograms, AnErrorOfOneRankAloneNamesIt) {
  fs::remove(folder_ / "b/model/model.safetensors");
  EXPECT_EQ(run({"--seq-len", "64"}, {"--seq-len", "64"}), 2);
  EXPECT_THAT(job_->err(), HasSubstr("error: rank 1 on host " + host_name() + ", in evaluate: model"));
}

// Found in the middle of collective work, with a shared file open.
TEST_F(TwoPrograms, AnErrorOfOneRankInTheMiddleNamesItsLayer) {
  const std::string path = folder_ / "b/model/model.safetensors";
  std::string bytes = read_text(path);
  uint64_t header = 0;
  std::memcpy(&header, bytes.data(), sizeof header);
  const auto tensors = nlohmann::json::parse(bytes.substr(8, header));
  const auto begin = tensors["model.layers.1.mlp.up_proj.weight"]["data_offsets"][0].get<size_t>();
  // NaN in every floating-point type, where the model's fingerprint, which would find it first, does not look.
  bytes.replace(8 + header + begin + 512, 4, "\xff\xff\xff\xff");
  write_text(path, bytes);
  const Words common{"profile",   "--model", "model", "--dataset", kText,       "--samples", "40",
                     "--seq-len", "64",      "--out", out("p.h5"), "--threads", "1",         "--quiet"};
  SpawnedJob job(Words{"mpirun", "-n", "1", "-wdir", folder_ / "a", binary()} + common +
                     Words{":", "-n", "1", "-wdir", folder_ / "b", binary()} + common,
                 folder_.path());
  EXPECT_EQ(job.wait(kPromiseS), 2) << job.err();
  ASSERT_THAT(job.causes(), SizeIs(1)) << job.err();
  EXPECT_THAT(job.causes()[0],
              HasSubstr("rank 1 on host " + host_name() + ", in profile, layer 1: model/model.safetensors: tensor "));
  EXPECT_EQ(left_behind("p.h5"), 0);
}

TEST_F(TwoPrograms, AnErrorOfAllRanksIsToldOnceWithoutARank) {
  for (const char* folder : {"a", "b"}) fs::remove(folder_ / folder + "/model/model.safetensors");
  EXPECT_EQ(run({"--seq-len", "64"}, {"--seq-len", "64"}), 2);
  EXPECT_THAT(job_->err(), HasSubstr("error: model"));
}

TEST_F(TwoPrograms, AnotherBuildIsNamed) {
  // The version text of a copy, one letter changed in place.
  std::string program = read_text(binary());
  for (const char* type : {"Release)", "Debug)", "RelWithDebInfo)"}) {
    for (size_t at = program.find(type); at != std::string::npos; at = program.find(type, at + 1)) program[at] = 'X';
  }
  write_text(folder_ / "other", program);
  fs::permissions(folder_ / "other", fs::perms::owner_all);
  EXPECT_EQ(run({"--seq-len", "64"}, {"--seq-len", "64"}, folder_ / "other"), 2);
  EXPECT_THAT(job_->err(), HasSubstr("rank 1 on host " + host_name() + " has another build of cmoe ("));
}

}  // namespace
}  // namespace cmoe
