#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "carve/normal_equations.h"
#include "small_layer.h"
#include "support/refusal.h"
#include "support/world.h"

namespace cmoe {
namespace {

struct Data {
  static constexpr int64_t kSequences = 3, kLength = 70, kUnknowns = 9, kColumns = 13;
  Tensor z = random_tensor({kSequences * kLength, kColumns}, 11);

  Data() {
    for (int64_t t = 0; t < z.dim(0); ++t) {
      z.row<float>(t)[2] *= 1e4f;                                   // columns of very different size
      z.row<float>(t)[3] = 0;                                       // and one of zeros
      z.row<float>(t)[10] += 5;                                     // and one far from its mean
      if (t % 3 != 0) z.row<float>(t)[4] = z.row<float>(t)[5] = 0;  // and two that few tokens have
      if (t >= kLength) z.row<float>(t)[6] = 0;                     // and one of one rank
    }
  }
  NormalEquations of(Communicator& comm, bool grouped) const {
    const auto [begin, end] = shard_of(kSequences, comm.rank(), comm.size());
    const Tensor mine = z.rows(begin * kLength, end * kLength);
    const TokenChunks chunks = TokenChunks::of_sequences(end - begin, kSequences, kLength);
    const auto backend = make_cpu_backend();
    if (!grouped) return normal_equations(*backend, mine, kUnknowns, chunks, comm);
    std::vector<UnknownsOfTokens> groups{{0, 4, {}}, {4, 6, {}}, {6, 7, {}}, {7, 7, {}}, {7, kUnknowns, {}}};
    for (int64_t t = 0; t < mine.dim(0); ++t) {
      const int64_t token = begin * kLength + t;
      for (UnknownsOfTokens& group : groups) {
        if ((group.first == 4 && token % 3 != 0) || (group.first == 6 && token >= kLength)) continue;
        group.tokens.push_back(static_cast<int32_t>(t));
      }
    }
    return normal_equations(*backend, mine, groups, chunks, comm);
  }
};

std::vector<double> upper(const NormalEquations& equations) {
  const int64_t width = equations.unknowns + equations.right_sides;
  std::vector<double> values;
  for (int64_t i = 0; i < equations.unknowns; ++i) {
    for (int64_t j = i; j < width; ++j) values.push_back(equations.products[static_cast<size_t>(i * width + j)]);
  }
  return values;
}

TEST(NormalEquations, AreThoseOfOneRankToTheBitAndRight) {
  const Data data;
  const auto alone = test_world().split(test_world().rank());
  std::vector<double> mean(Data::kColumns, 0.0);
  const auto tokens = static_cast<double>(data.z.dim(0));
  for (int64_t t = 0; t < data.z.dim(0); ++t) {
    for (size_t j = 0; j < mean.size(); ++j) mean[j] += static_cast<double>(data.z.row<float>(t)[j]) / tokens;
  }
  for (const bool grouped : {false, true}) {
    const NormalEquations found = data.of(test_world(), grouped), one = data.of(*alone, grouped);
    EXPECT_EQ(found.unknowns, Data::kUnknowns);
    EXPECT_EQ(found.right_sides, Data::kColumns - Data::kUnknowns);
    EXPECT_EQ(upper(found), upper(one));
    EXPECT_EQ(found.mean, one.mean);
    for (size_t i = 0; i < mean.size(); ++i) EXPECT_NEAR(found.mean[i], mean[i], 1e-10 * (1 + std::abs(mean[i])));
    for (size_t i = 0; i < Data::kUnknowns; ++i) {
      for (size_t j = i; j < Data::kColumns; ++j) {
        double expected = 0, size = 0;
        for (int64_t t = 0; t < data.z.dim(0); ++t) {
          const double a = data.z.row<float>(t)[i], b = data.z.row<float>(t)[j];
          expected += (a - mean[i]) * (b - mean[j]);
          size += std::abs(a * b);
        }
        EXPECT_NEAR(found.products[i * Data::kColumns + j], expected, 1e-6 * size) << i << ", " << j;
      }
    }
  }
}

TEST(NormalEquations, RefuseAValueThatIsNoNumber) {
  const Data data;
  const auto alone = test_world().split(test_world().rank());
  data.z.row<float>(17)[11] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(refusal([&] { data.of(*alone, false); }),
              ::testing::HasSubstr("normal equations: element [0, 11] is nan, expected a finite number"));
  data.z.row<float>(17)[11] = std::numeric_limits<float>::infinity();
  EXPECT_THAT(refusal([&] { data.of(*alone, false); }),
              ::testing::HasSubstr("column lengths: the largest magnitude of element 11"));
}

}  // namespace
}  // namespace cmoe
