#include <gmock/gmock.h>

#include <cstring>
#include <set>

#include "base/parallel.h"
#include "model/fingerprint.h"
#include "support/tiny_gguf.h"
#include "support/tiny_model.h"

namespace cmoe {
namespace {

using Tensors = std::map<std::string, Tensor>;

std::string fingerprint_of(const std::string& path) { return model_fingerprint(open_checkpoint(path)); }

class Fingerprint : public ::testing::Test {
 protected:
  std::string variant(const std::string& name, const std::function<void(Tensors&)>& change) {
    write_tiny_variant(folder_ / name, [&](Tensors& tensors, nlohmann::json&) { change(tensors); });
    return fingerprint_of(folder_ / name);
  }
  TemporaryDirectory folder_;
};

TEST_F(Fingerprint, IsTheSameForTheSameBytes) {
  const std::string one = fingerprint_of(fixture("tiny-llama"));
  EXPECT_EQ(one.size(), 64u);
  std::filesystem::copy(fixture("tiny-llama"), folder_ / "copy");
  set_num_threads(3);
  EXPECT_EQ(fingerprint_of(folder_ / "copy"), one);
  set_num_threads(1);
  EXPECT_NE(variant("f32", [](Tensors&) {}), one) << "another file type";
}

// With frozen norms: the tensor moves as training moves it, by a little everywhere. Every tensor counts.
TEST_F(Fingerprint, SeesEveryTensorMove) {
  std::set<std::string> seen{variant("base", [](Tensors&) {})};
  const std::vector<std::string> names = open_checkpoint(folder_ / "base").tensors->names();
  for (size_t i = 0; i < names.size(); ++i) {
    const std::string moved = variant("moved" + std::to_string(i), [&](Tensors& tensors) {
      uint32_t state = 12345;
      for (float& weight : tensors[names[i]].span<float>()) {
        state = state * 1664525u + 1013904223u;
        weight += 1e-3f * (static_cast<float>(state >> 8) / 0x1p24f - 0.5f);
      }
    });
    EXPECT_TRUE(seen.insert(moved).second) << names[i];
  }
}

TEST_F(Fingerprint, ReadsGgufFiles) {
  const auto hash = [&](const std::string& name, const std::string& bytes) {
    write_text(folder_ / name, bytes);
    return fingerprint_of(folder_ / name);
  };
  const std::string whole = tiny_llama_gguf();
  const std::string one = hash("a.gguf", whole);
  EXPECT_EQ(hash("b.gguf", whole), one);
  std::string moved = whole;
  moved.back() = static_cast<char>(moved.back() ^ 1);
  EXPECT_NE(hash("c.gguf", moved), one);
}

TEST_F(Fingerprint, ReadsAFixedAmountFromBeginningToEnd) {
  for (const int64_t size : {int64_t{1}, int64_t{255}, int64_t{4096}, int64_t{4097}, int64_t{1} << 40, int64_t{1} << 58}) {
    int64_t read = 0, first = size, last = 0;
    Sha256 hash;
    hash_sample(
        size,
        [&](int64_t begin, int64_t count, void* to) {
          ASSERT_GE(begin, 0);
          ASSERT_LE(begin + count, size);
          std::memset(to, 0, static_cast<size_t>(count));
          read += count;
          first = std::min(first, begin);
          last = std::max(last, begin + count);
        },
        hash);
    EXPECT_EQ(read, std::min<int64_t>(size, 4096));
    EXPECT_EQ(first, 0);
    EXPECT_EQ(last, size);
  }
}

}  // namespace
}  // namespace cmoe
