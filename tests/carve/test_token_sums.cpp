#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "carve/token_sums.h"
#include "data/windows.h"
#include "small_layer.h"
#include "support/refusal.h"
#include "support/world.h"

namespace cmoe {
namespace {

struct Data {
  static constexpr int64_t kSequences = 3, kLength = 70, kA = 9;
  Tensor a = random_tensor({kSequences * kLength, kA}, 11);

  Data() {
    for (int64_t t = 0; t < a.dim(0); ++t) {
      a.row<float>(t)[2] *= 1e4f;  // columns of very different size
      a.row<float>(t)[3] = 0;      // and one of zeros
    }
  }
  TokenChunks chunks(const Communicator& comm) const {
    const auto [begin, end] = shard_of(kSequences, comm.rank(), comm.size());
    return TokenChunks::of_sequences(end - begin, kSequences, kLength);
  }
  Tensor mine(const Tensor& all, const Communicator& comm) const {
    const auto [begin, end] = shard_of(kSequences, comm.rank(), comm.size());
    return all.rows(begin * kLength, end * kLength);
  }
};

TEST(TokenSums, ColumnSumsAreThoseOfOneRankToTheBitAndRight) {
  const Data data;
  Communicator& world = test_world();
  const auto alone = world.split(world.rank());
  const std::vector<double> found = column_sums(data.mine(data.a, world), data.chunks(world), world);
  EXPECT_EQ(found, column_sums(data.a, data.chunks(*alone), *alone));
  for (int64_t i = 0; i < Data::kA; ++i) {
    double expected = 0;
    for (int64_t t = 0; t < data.a.dim(0); ++t) expected += data.a.row<float>(t)[i];
    EXPECT_NEAR(found[static_cast<size_t>(i)], expected, 1e-10 * (1 + std::abs(expected)));
  }
}

TEST(TokenSums, TermsCoverEveryTokenOnce) {
  const Data data;
  Communicator& world = test_world();
  const TokenChunks chunks = data.chunks(world);
  const std::vector<double> found = sum_over_tokens(2, chunks, world, [](int64_t begin, int64_t end, std::span<double> out) {
    out[0] += static_cast<double>(end - begin);
    out[1] += 1;
  });
  EXPECT_EQ(found[0], Data::kSequences * Data::kLength);
  EXPECT_EQ(found[1], Data::kSequences);
}

TEST(TokenSums, LongSequencesAreCutIntoPieces) {
  const TokenChunks chunks = TokenChunks::of_sequences(2, 5, TokenChunks::kChunkTokens + 3);
  EXPECT_EQ(chunks.local_chunks(), 4);
  EXPECT_EQ(chunks.total_chunks, 10);
  EXPECT_EQ(chunks.local_tokens(), 2 * (TokenChunks::kChunkTokens + 3));
  EXPECT_EQ(chunks.begin[1], TokenChunks::kChunkTokens);
  EXPECT_EQ(chunks.begin[2], TokenChunks::kChunkTokens + 3);
}

TEST(TokenSums, AValueThatIsNoNumberIsRefused) {
  const Data data;
  const auto alone = test_world().split(test_world().rank());
  data.a.row<float>(17)[4] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(refusal([&] { column_sums(data.a, data.chunks(*alone), *alone); }), ::testing::HasSubstr("sum over tokens"));
}

}  // namespace
}  // namespace cmoe
