#include <gmock/gmock.h>

#include "data/python_random.h"
#include "data/support.h"
#include "data/windows.h"

namespace cmoe {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Numbers below: CPython 3.11, `r = random.Random(seed); [r.getrandbits(b), ...]`.
TEST(PythonRandom, EqualsCPython) {
  PythonRandom zero(0);
  EXPECT_EQ(zero.bits(32), 3626764237u);
  EXPECT_EQ(zero.bits(1), 0u);
  EXPECT_EQ(zero.bits(64), 16422101724900707500u);
  EXPECT_EQ(zero.below(1000), 430);
  PythonRandom large(12345678901234567890u);  // a seed of two 32-bit digits
  EXPECT_EQ(large.bits(32), 2199100970u);
  EXPECT_EQ(large.between(-5, int64_t{1} << 40), 778792058562);
  PythonRandom many(7);
  uint64_t sum = 0;
  for (int i = 0; i < 2000; ++i) sum += many.bits(32);  // the state is renewed three times
  EXPECT_EQ(sum, 4170787962687u);
}

// `r = random.Random(1234); [r.sample(range(10), 3), ...]`: small populations are drawn from a list, large ones from a set.
TEST(PythonRandom, SamplesAsCPython) {
  PythonRandom random(1234);
  EXPECT_THAT(random.sample(10, 3), ElementsAre(7, 1, 0));
  EXPECT_THAT(random.sample(1000, 3), ElementsAre(92, 932, 965));
  EXPECT_THAT(random.sample(1000, 8), ElementsAre(961, 826, 596, 35, 687, 709, 85, 100));
  EXPECT_THAT(random.sample(80, 7), ElementsAre(45, 30, 2, 3, 77, 44, 61));
  EXPECT_THAT(random.sample(5, 5), ElementsAre(4, 3, 0, 2, 1));
  EXPECT_TRUE(random.sample(5, 0).empty());
}

TEST(Windows, RandomOffsetsArePythons) {
  EXPECT_THAT(random_offsets(233556, 2048, 8, 0), ElementsAre(221360, 100989, 198693, 110250, 10612, 67873, 134027, 127383));
  for (int64_t offset : random_offsets(9, 8, 100, 3)) EXPECT_EQ(offset, 0);
  EXPECT_THAT(message_of([] { random_offsets(8, 8, 1, 0); }), HasSubstr("text: 8 tokens are too few for a random window of 8"));
}

TEST(Windows, OffsetsFromAFile) {
  const ScratchFolder folder;
  const auto read = [&](const std::string& content) { return read_offsets(folder.write("offsets", content), 100, 10); };
  EXPECT_THAT(read("# drawn with seed 0\n3\n\n 90 # last\r\n0"), ElementsAre(3, 90, 0));
  EXPECT_THAT(message_of([&] { read("1\n91\n"); }),
              HasSubstr("offsets: line 2: offset 91 is out of range; a window of 10 in 100 tokens begins at 0 to 90"));
  EXPECT_THAT(message_of([&] { read("-1\n"); }), HasSubstr("line 1: offset -1 is out of range"));
  EXPECT_THAT(message_of([&] { read("1 2\n"); }), HasSubstr("line 1: '1 2' is not an offset"));
  EXPECT_THAT(message_of([&] { read("# none\n"); }), HasSubstr("no offsets"));
  EXPECT_THAT(message_of([&] { read_offsets(folder.path() + "/absent", 100, 10); }), HasSubstr("cannot be opened"));
}

TEST(Windows, ConsecutiveOnesDoNotOverlap) {
  EXPECT_THAT(consecutive_offsets(35, 10), ElementsAre(0, 10, 20));
  EXPECT_THAT(consecutive_offsets(35, 10, 2), ElementsAre(0, 10));
  EXPECT_THAT(consecutive_offsets(10, 10, 5), ElementsAre(0));
  EXPECT_THAT(message_of([] { consecutive_offsets(9, 10); }), HasSubstr("text: 9 tokens are too few for a window of 10"));
}

TEST(Windows, StridedOnesScoreEveryTokenOnceWithContext) {
  for (int64_t tokens : {2, 3, 7, 8, 9, 10, 11, 15, 16, 33, 100}) {
    for (int64_t stride : {1, 3, 4, 7}) {
      const int64_t seq_len = 8;
      std::vector<int> scored(static_cast<size_t>(tokens));
      for (const auto& window : strided_windows(tokens, seq_len, stride)) {
        ASSERT_GE(window.score_from, 1);
        ASSERT_LT(window.score_from, window.length);
        ASSERT_LE(window.length, seq_len);
        ASSERT_LE(window.offset + window.length, tokens);
        if (window.offset > 0) {
          EXPECT_GE(window.score_from, seq_len - stride);
        }
        for (int64_t i = window.score_from; i < window.length; ++i) scored[static_cast<size_t>(window.offset + i)]++;
      }
      EXPECT_EQ(scored[0], 0);
      for (size_t i = 1; i < scored.size(); ++i)
        EXPECT_EQ(scored[i], 1) << tokens << " tokens, stride " << stride << ", token " << i;
    }
  }
  EXPECT_THAT(message_of([] { strided_windows(100, 8, 8); }), HasSubstr("stride 8 does not fit windows of 8; expected 1 to 7"));
  EXPECT_THAT(message_of([] { strided_windows(1, 8, 4); }), HasSubstr("1 tokens are too few to predict one"));
}

TEST(Windows, ShardsCoverAllAndDifferByOne) {
  for (int64_t count : {0, 1, 5, 8, 17}) {
    for (int64_t size : {1, 2, 3, 8}) {
      int64_t next = 0;
      for (int64_t rank = 0; rank < size; ++rank) {
        const auto [begin, end] = shard_of(count, rank, size);
        EXPECT_EQ(begin, next);
        EXPECT_GE(end - begin, count / size);
        EXPECT_LE(end - begin, (count + size - 1) / size);
        next = end;
      }
      EXPECT_EQ(next, count);
    }
  }
}

}  // namespace
}  // namespace cmoe
