// cmoe profile through the program: what it writes, on any number of ranks, and what it refuses.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "support/plain_llama.h"
#include "support/program.h"
#include "support/tiny_model.h"
#include "tensor/hdf5.h"

namespace cmoe {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

constexpr int64_t kLayers = 3, kNeurons = 160, kSamples = 5, kLength = 48, kTokens = kSamples * kLength, kAct = 7;
const std::string kText = fixture("text/train.txt");

// `more` replaces the defaults that it names.
std::vector<std::string> profile_command(const std::string& out, const std::vector<std::string>& more = {}) {
  std::vector<std::string> words{"profile", "--quiet", "--out", out};
  const std::pair<const char*, std::string> defaults[] = {
      {"--model", fixture("tiny-llama")}, {"--dataset", kText}, {"--samples", "5"}, {"--seq-len", "48"}, {"--k-act", "7"}};
  for (const auto& [name, value] : defaults) {
    if (std::find(more.begin(), more.end(), name) == more.end()) words.insert(words.end(), {name, value});
  }
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

// Names of all datasets.
std::vector<std::string> datasets() {
  std::vector<std::string> names{"tokens"};
  for (int64_t l = 0; l < kLayers; ++l) {
    for (const char* name :
         {"markers_raw", "markers_normalized", "count_raw", "count_normalized", "mean", "second_moment", "mean_abs"}) {
      names.push_back("layers/000" + std::to_string(l) + "/" + name);
    }
  }
  return names;
}

std::string raw_bytes(const H5File& file, const std::string& dataset) {
  const auto bytes = [](const auto& values) {
    return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(values[0]));
  };
  switch (file.type(dataset)) {
    case H5Type::i64:
      return bytes(file.read_all<int64_t>(dataset));
    case H5Type::f64:
      return bytes(file.read_all<double>(dataset));
    case H5Type::i32:
      return bytes(file.read_all<int32_t>(dataset));
    case H5Type::u16:
      return bytes(file.read_all<uint16_t>(dataset));
    default:
      ADD_FAILURE() << dataset << " has type " << name_of(file.type(dataset));
      return "";
  }
}

// One profile for each number of ranks, made once.
class ProfileJob : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new TemporaryDirectory;
    for (int ranks : {1, 2, 3, 4, 8}) {
      const ProgramResult result = run_cmoe(profile_command(path(ranks)), {.ranks = ranks});
      ASSERT_EQ(result.code, 0) << ranks << " ranks: " << result.err;
    }
  }
  static void TearDownTestSuite() { delete folder_; }
  static std::string path(int ranks) { return *folder_ / ("p" + std::to_string(ranks) + ".h5"); }

  static inline TemporaryDirectory* folder_ = nullptr;
};

TEST_F(ProfileJob, IsTheSameOnAnyNumberOfRanksAlsoMoreThanSequences) {
  const H5File one = H5File::open(path(1));
  EXPECT_EQ(one.children("layers").size(), static_cast<size_t>(kLayers));
  for (int ranks : {2, 3, 4, 8}) {
    const H5File many = H5File::open(path(ranks));
    for (const std::string& name : datasets()) {
      EXPECT_EQ(many.shape(name), one.shape(name)) << name;
      EXPECT_TRUE(raw_bytes(many, name) == raw_bytes(one, name)) << name << " on " << ranks << " ranks differs";
    }
    EXPECT_EQ(many.number_attribute("/", "dense_nll"), one.number_attribute("/", "dense_nll"));
    EXPECT_EQ(many.string_attribute("/", "model_hash"), one.string_attribute("/", "model_hash"));
    EXPECT_EQ(many.integer_attribute("/", "ranks"), ranks);
  }
}

TEST_F(ProfileJob, KeepsItsProvenance) {
  const H5File file = H5File::open(path(1));
  EXPECT_EQ(file.string_attribute("/", "format"), "cmoe-profile-1");
  EXPECT_EQ(file.integer_attribute("/", "k_act"), kAct);
  EXPECT_EQ(file.string_attribute("/", "model"), fixture("tiny-llama"));
  EXPECT_THAT(file.string_attribute("/", "options"), HasSubstr("seq-len = 48\n"));
  EXPECT_THAT(file.string_attribute("/", "datasets"), ::testing::MatchesRegex("train.txt [0-9a-f]+\n"));
  EXPECT_EQ(file.string_attribute("/", "dtype"), "f32");
  EXPECT_GT(file.number_attribute("/", "seconds"), 0);
  EXPECT_TRUE(fs::exists(path(1) + ".cfg"));
}

TEST_F(ProfileJob, CountsAreThoseOfTheMarkersAndSumToKActPerToken) {
  const H5File file = H5File::open(path(3));
  for (int64_t l = 0; l < kLayers; ++l) {
    const std::string group = "layers/000" + std::to_string(l) + "/";
    for (const char* kind : {"raw", "normalized"}) {
      const auto markers = file.read_all<uint16_t>(group + "markers_" + kind, {kTokens, kAct});
      const auto count = file.read_all<int64_t>(group + "count_" + kind, {kNeurons});
      std::vector<int64_t> expected(kNeurons);
      for (int64_t t = 0; t < kTokens; ++t) {
        const auto row = std::span(markers).subspan(static_cast<size_t>(t * kAct), kAct);
        EXPECT_EQ(std::set<uint16_t>(row.begin(), row.end()).size(), static_cast<size_t>(kAct)) << "token " << t;
        for (uint16_t i : row) ++expected.at(i);
      }
      EXPECT_EQ(count, expected);
      EXPECT_EQ(std::accumulate(count.begin(), count.end(), int64_t{0}), kAct * kTokens);
    }
  }
}

// The indices of the k largest |values|, and the gap between the last that is in and the first that is out.
std::pair<std::set<int32_t>, double> largest(const std::vector<double>& values) {
  std::vector<int32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return std::abs(values[static_cast<size_t>(a)]) > std::abs(values[static_cast<size_t>(b)]);
  });
  const double in = std::abs(values[static_cast<size_t>(order[kAct - 1])]),
               out = std::abs(values[static_cast<size_t>(order[kAct])]);
  return {{order.begin(), order.begin() + kAct}, (in - out) / in};
}

double length(const std::vector<double>& v) { return std::sqrt(std::inner_product(v.begin(), v.end(), v.begin(), 0.0)); }

// silu(x^ . g^_i) (x^ . u^_i), all vectors of unit length.
std::vector<double> normalized_activation(const std::vector<double>& x, const PlainLlama::Matrix& gate,
                                          const PlainLlama::Matrix& up) {
  std::vector<double> a;
  for (size_t i = 0; i < gate.size(); ++i) {
    const double g = std::inner_product(x.begin(), x.end(), gate[i].begin(), 0.0) / length(x) / length(gate[i]);
    const double u = std::inner_product(x.begin(), x.end(), up[i].begin(), 0.0) / length(x) / length(up[i]);
    a.push_back(g / (1 + std::exp(-g)) * u);
  }
  return a;
}

// Markers, moments and loss against a plain f64 forward of the same tokens.
TEST_F(ProfileJob, HoldsWhatAPlainForwardComputes) {
  const H5File file = H5File::open(path(2));
  const auto tokens = file.read_all<int32_t>("tokens", {kSamples, kLength});
  const Checkpoint checkpoint = open_checkpoint(fixture("tiny-llama"));
  const PlainLlama model(checkpoint);
  std::vector<std::vector<double>> mean(kLayers, std::vector<double>(kNeurons)), square = mean, mean_abs = mean;
  double nll = 0;
  int64_t compared = 0;
  for (int64_t s = 0; s < kSamples; ++s) {
    const auto sequence = std::span(tokens).subspan(static_cast<size_t>(s * kLength), kLength);
    for (double loss : model.nll(sequence)) nll += loss;
    model.run(sequence, [&](int64_t l, const PlainLlama::Ffn& ffn) {
      const std::string group = "layers/000" + std::to_string(l) + "/";
      const auto raw = file.read_all<uint16_t>(group + "markers_raw"),
                 normalized = file.read_all<uint16_t>(group + "markers_normalized");
      const std::string mlp = "model.layers." + std::to_string(l) + ".mlp.";
      const PlainLlama::Matrix gate = model.matrix(mlp + "gate_proj.weight"), up = model.matrix(mlp + "up_proj.weight");
      for (size_t t = 0; t < ffn.h.size(); ++t) {
        for (size_t i = 0; i < kNeurons; ++i) {
          const double h = ffn.h[t][i], share = 1.0 / kTokens;
          mean[static_cast<size_t>(l)][i] += share * h;
          square[static_cast<size_t>(l)][i] += share * h * h;
          mean_abs[static_cast<size_t>(l)][i] += share * std::abs(h);
        }
        const auto stored = [&](const std::vector<uint16_t>& markers) {
          const auto first = markers.begin() + static_cast<ptrdiff_t>((static_cast<size_t>(s * kLength) + t) * kAct);
          return std::set<int32_t>(first, first + kAct);
        };
        // Where the last place is closer than f32 rounding tells apart, either neuron is right.
        const auto compare = [&](const std::vector<uint16_t>& markers, const std::vector<double>& activation) {
          const auto [expected, gap] = largest(activation);
          if (gap < 1e-4) return;
          EXPECT_EQ(stored(markers), expected) << "layer " << l << " token " << t;
          ++compared;
        };
        compare(raw, ffn.h[t]);
        compare(normalized, normalized_activation(ffn.input[t], gate, up));
      }
    });
  }
  EXPECT_GT(compared, 2 * kTokens * kLayers * 9 / 10);
  EXPECT_NEAR(file.number_attribute("/", "dense_nll"), nll / (kSamples * (kLength - 1)), 1e-5);
  for (int64_t l = 0; l < kLayers; ++l) {
    const std::string group = "layers/000" + std::to_string(l) + "/";
    const auto same = [&](const char* name, const std::vector<double>& expected) {
      const auto found = file.read_all<double>(group + name, {kNeurons});
      for (size_t i = 0; i < kNeurons; ++i)
        EXPECT_NEAR(found[i], expected[i], 1e-5 * (1 + std::abs(expected[i]))) << name << " " << i;
    };
    same("mean", mean[static_cast<size_t>(l)]);
    same("second_moment", square[static_cast<size_t>(l)]);
    same("mean_abs", mean_abs[static_cast<size_t>(l)]);
  }
}

TEST_F(ProfileJob, TakesGivenWindows) {
  const std::string all = *folder_ / "all.h5", offsets = *folder_ / "offsets.txt", out = *folder_ / "given.h5";
  write_text(offsets, "100\n48 # the second window\n0\n1\n2000\n");
  ASSERT_EQ(run_cmoe(profile_command(out, {"--window-offsets", offsets})).code, 0);
  const auto tokens = H5File::open(out).read_all<int32_t>("tokens", {kSamples, kLength});
  // Row 3 is row 2 one token later, and row 1 follows row 2 directly.
  EXPECT_TRUE(std::equal(tokens.begin() + 2 * kLength + 1, tokens.begin() + 3 * kLength, tokens.begin() + 3 * kLength));
  EXPECT_EQ(tokens[3 * kLength + kLength - 1], tokens[kLength]);
}

TEST_F(ProfileJob, ReplacesAnExistingFileOnlyWithForce) {
  const std::string out = *folder_ / "existing.h5";
  write_text(out, "precious");
  const ProgramResult refused = run_cmoe(profile_command(out));
  EXPECT_EQ(refused.code, 2);
  EXPECT_THAT(refused.err, HasSubstr(out + ": exists; pass --force to replace it"));
  EXPECT_EQ(read_text(out), "precious");
  EXPECT_EQ(run_cmoe(profile_command(out, {"--force"})).code, 0);
  EXPECT_TRUE(H5File::open(out).has_attribute("/", "complete"));
}

TEST_F(ProfileJob, RefusesWhatItCannotDo) {
  const auto refuses = [&](const std::vector<std::string>& more, const std::string& message) {
    const std::string out = *folder_ / "refused.h5";
    const ProgramResult result = run_cmoe(profile_command(out, more));
    EXPECT_EQ(result.code, 2) << result.err;
    EXPECT_THAT(result.err, HasSubstr(message));
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    EXPECT_FALSE(fs::exists(out));
    EXPECT_FALSE(fs::exists(out + ".partial"));
  };
  refuses({"--k-act", "161"}, "--k-act 161: more than the 160 neurons of a layer");
  refuses({"--k-act", "0"}, "k-act");
  refuses({"--samples", "0"}, "option --samples: '0'");
  const std::string brief = *folder_ / "brief.txt", offsets = *folder_ / "few.txt";
  write_text(brief, "One short sentence.");
  write_text(offsets, "1\n2\n");
  refuses({"--window-offsets", offsets}, "few.txt: 2 offsets; expected at least --samples 5");
  refuses({"--dataset", brief}, "tokens are too few for a random window of 48");
  refuses({"--model", fixture("tiny-cmoe-authors")}, "is carved already; profile takes a dense model");
}

TEST_F(ProfileJob, AKillLeavesNothingUnderTheFinalName) {
  const std::string out = *folder_ / "killed.h5";
  const ProgramResult result =
      run_cmoe(profile_command(out, {"--samples", "400", "--seq-len", "200"}), {.kill_when_exists = out + ".partial"});
  EXPECT_EQ(result.code, 128 + SIGKILL);
  EXPECT_FALSE(fs::exists(out));
  // What it left does not hinder the next run.
  EXPECT_EQ(run_cmoe(profile_command(out)).code, 0);
  EXPECT_TRUE(H5File::open(out).has_attribute("/", "complete"));
}

TEST_F(ProfileJob, DryRunPrintsThePlanAndWritesNothing) {
  const std::string out = *folder_ / "planned.h5";
  const ProgramResult result = run_cmoe(profile_command(out, {"--dry-run"}), {.ranks = 2});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_FALSE(fs::exists(out));
  for (const char* part : {"calibration tokens", "tokens on the busiest of 2 ranks", "144", "work per rank", "memory per rank",
                           "bytes all-reduced per rank"}) {
    EXPECT_THAT(result.out, HasSubstr(part));
  }
  // Beside the data an HDF5 file holds its directory: some hundred bytes a dataset.
  const int64_t data = kLayers * (2 * kTokens * kAct * 2 + kNeurons * 40) + kTokens * 4;
  EXPECT_THAT(result.out, HasSubstr(out));
  EXPECT_THAT(result.out, HasSubstr(std::to_string(data) + " bytes of data"));
  const auto real = static_cast<int64_t>(fs::file_size(path(1)));
  EXPECT_GE(real, data);
  EXPECT_LE(real, data + 1024 * static_cast<int64_t>(datasets().size()) + 4096);
}

}  // namespace
}  // namespace cmoe
