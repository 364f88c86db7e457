#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "base/error.h"
#include "base/parallel.h"
#include "carve/reproducible_sum.h"
#include "support/world.h"

namespace cmoe {
namespace {

using testing::HasSubstr;

constexpr int64_t kChunks = 13, kRows = 7, kColumns = 5;

// The same chunks on every rank; each test deals them out. Rows differ in size by many powers of ten.
template <class T>
std::vector<std::vector<T>> make_chunks(double row_spread) {
  std::mt19937_64 random(1);
  std::normal_distribution<double> normal;
  std::vector<std::vector<T>> chunks(kChunks, std::vector<T>(kRows * kColumns));
  for (auto& chunk : chunks) {
    for (int64_t i = 0; i < kRows * kColumns; ++i) {
      chunk[i] = static_cast<T>(normal(random) * std::pow(10.0, row_spread * static_cast<double>(i / kColumns - 3)));
    }
  }
  return chunks;
}

template <class T>
std::vector<double> row_bounds(const std::vector<std::vector<T>>& chunks) {
  std::vector<double> bound(kRows, 0);
  for (const auto& chunk : chunks) {
    for (int64_t i = 0; i < kRows * kColumns; ++i)
      bound[i / kColumns] = std::max<double>(bound[i / kColumns], std::abs(chunk[i]));
  }
  return bound;
}

// Chunk c belongs to `owner(c)`; ranks visit theirs backwards where `reversed`.
template <class T, class Owner>
std::vector<double> sum_dealt(const std::vector<std::vector<T>>& chunks, Owner owner, bool reversed, Communicator& comm) {
  ReproducibleSum sum(row_bounds(chunks), std::vector<double>(kColumns, 1.0), kChunks, "test sum");
  for (int64_t at = 0; at < kChunks; ++at) {
    const int64_t c = reversed ? kChunks - 1 - at : at;
    if (owner(c) == comm.rank()) sum.add(std::span<const T>(chunks[c]));
  }
  return sum.finish(comm);
}

template <class T>
void expect_same_for_any_deal() {
  Communicator& world = test_world();
  const int ranks = world.size();
  const auto alone = world.split(world.rank());
  const auto chunks = make_chunks<T>(3.0);
  const std::vector<double> one_rank = sum_dealt(
      chunks, [](int64_t) { return 0; }, false, *alone);
  EXPECT_EQ(sum_dealt(
                chunks, [&](int64_t c) { return static_cast<int>(c % ranks); }, false, world),
            one_rank);
  EXPECT_EQ(sum_dealt(
                chunks, [&](int64_t c) { return static_cast<int>(c * ranks / kChunks); }, true, world),
            one_rank);
  EXPECT_EQ(sum_dealt(
                chunks, [&](int64_t) { return ranks - 1; }, true, world),
            one_rank);  // the others have none

  const std::vector<double> bound = row_bounds(chunks);
  for (int64_t i = 0; i < kRows * kColumns; ++i) {
    long double exact = 0;
    for (const auto& chunk : chunks) exact += chunk[i];
    // Each term is rounded by half a unit of 2^-50 of the bound's power of two, at most twice the bound.
    EXPECT_NEAR(one_rank[i], static_cast<double>(exact), kChunks * bound[i / kColumns] * 0x1p-50) << "element " << i;
  }
}

TEST(ReproducibleSum, IsTheSameToTheBitHoweverChunksAreDealt) {
  expect_same_for_any_deal<float>();
  expect_same_for_any_deal<double>();
  set_num_threads(2);
  expect_same_for_any_deal<double>();
  set_num_threads(1);
}

TEST(ReproducibleSum, GramMatricesKeepTheirDigits) {
  Communicator& world = test_world();
  std::mt19937_64 random(2);
  std::normal_distribution<double> normal;
  const int64_t n = 6, tokens = 20, chunks = 9;
  std::vector<std::vector<double>> part(chunks, std::vector<double>(n * n, 0));
  for (auto& gram : part) {
    for (int64_t t = 0; t < tokens; ++t) {
      std::vector<double> x(n);
      for (int64_t i = 0; i < n; ++i) x[i] = normal(random) * std::pow(100.0, static_cast<double>(i));
      for (int64_t i = 0; i < n * n; ++i) gram[i] += x[i / n] * x[i % n];
    }
  }
  std::vector<double> local_max(n, 0);
  for (int64_t c = world.rank(); c < chunks; c += world.size()) {
    for (int64_t i = 0; i < n; ++i) local_max[i] = std::max(local_max[i], std::sqrt(part[c][i * n + i]));
  }
  const std::vector<double> bound = agree_bounds(local_max, world, "gram");
  ReproducibleSum sum(bound, bound, chunks, "gram");
  EXPECT_GE(sum.fraction_bits(), 50);
  for (int64_t c = world.rank(); c < chunks; c += world.size()) sum.add(std::span<const double>(part[c]));
  const std::vector<double> total = sum.finish(world);
  for (int64_t i = 0; i < n * n; ++i) {
    long double exact = 0;
    for (const auto& gram : part) exact += gram[i];
    EXPECT_NEAR(total[i], static_cast<double>(exact), chunks * bound[i / n] * bound[i % n] * 0x1p-50);
    EXPECT_EQ(total[i], total[i % n * n + i / n]);
  }
}

TEST(ReproducibleSum, VectorsBringTheirOwnBounds) {
  Communicator& world = test_world();
  const auto alone = world.split(world.rank());
  const auto all = make_chunks<double>(5.0);
  std::vector<std::vector<double>> mine;
  for (int64_t c = world.rank(); c < kChunks; c += world.size()) mine.push_back(all[c]);
  const std::vector<double> together = sum_reproducibly(mine, kRows * kColumns, world, "vector");
  EXPECT_EQ(together, sum_reproducibly(all, kRows * kColumns, *alone, "vector"));
  for (int64_t i = 0; i < kRows * kColumns; ++i) {
    long double exact = 0;
    double largest = 0;
    for (const auto& chunk : all) {
      exact += chunk[i];
      largest = std::max(largest, std::abs(chunk[i]));
    }
    EXPECT_NEAR(together[i], static_cast<double>(exact), kChunks * largest * 0x1p-50);
  }
  EXPECT_EQ(sum_reproducibly({}, 3, world, "nothing"), std::vector<double>(3, 0.0));
}

TEST(ReproducibleSum, CannotOverflowAtItsBounds) {
  Communicator& world = test_world();
  const auto alone = world.split(world.rank());
  for (int64_t chunks : {int64_t{1}, int64_t{2}, int64_t{3}, int64_t{2048}}) {
    ReproducibleSum sum(std::vector<double>{1.0, 0.0}, std::vector<double>{3.0}, chunks, "full");
    EXPECT_GE(sum.fraction_bits(), 50);
    const std::vector<double> chunk{-8.0, 0.0};  // twice the bound's power of two; a row known to be zero
    for (int64_t c = 0; c < chunks; ++c) sum.add(std::span<const double>(chunk));
    EXPECT_EQ(sum.finish(*alone), (std::vector<double>{-8.0 * static_cast<double>(chunks), 0.0}));
  }
}

template <class Function>
std::string message_of(Function function) {
  try {
    function();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(ReproducibleSum, RefusesWithNames) {
  Communicator& world = test_world();
  const auto alone = world.split(world.rank());
  const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  const std::vector<double> one{1.0}, two{1.0, 1.0}, zero{0.0};
  const auto add = [&](const std::vector<double>& bound, std::vector<double> chunk) {
    return message_of([&] { ReproducibleSum(one, bound, 4, "layer 3 gram").add(std::span<const double>(chunk)); });
  };
  EXPECT_THAT(add(two, {1.0, nan}), HasSubstr("layer 3 gram: element [0, 1] is nan, expected a finite number"));
  EXPECT_THAT(add(two, {-infinity, 0}), HasSubstr("layer 3 gram: element [0, 0] is -inf, expected a finite number"));
  EXPECT_THAT(add(two, {1.0, 2.5}), HasSubstr("layer 3 gram: element [0, 1] is 2.5, expected at most its bound 1 x 1"));
  EXPECT_THAT(add(zero, {1e-30}), HasSubstr("element [0, 0] is 1e-30, expected at most its bound"));
  EXPECT_THAT(add(zero, {nan}), HasSubstr("element [0, 0] is nan"));
  EXPECT_THAT(add(two, {1.0}), HasSubstr("a chunk has 1 elements, expected 1 x 2"));
  EXPECT_THAT(message_of([&] { ReproducibleSum(one, one, 2049, "s"); }), HasSubstr("2049 chunks, expected 0 to 2048"));
  EXPECT_THAT(message_of([&] {
                ReproducibleSum(one, std::vector<double>{1.0, nan}, 1, "s");
              }),
              HasSubstr("the bound of column 1 is nan"));
  EXPECT_THAT(message_of([&] { ReproducibleSum(one, one, 3, "s").finish(*alone); }),
              HasSubstr("the ranks added 0 chunks, expected 3"));
  EXPECT_THAT(message_of([&] {
                agree_bounds({1.0, nan}, *alone, "s");
              }),
              HasSubstr("s: the largest magnitude of element 1 is nan on rank 0"));
  EXPECT_THAT(message_of([&] {
                sum_reproducibly(std::vector<std::vector<double>>{{1.0, nan}}, 2, *alone, "s");
              }),
              HasSubstr("s: element 1 of a chunk is nan"));
}

}  // namespace
}  // namespace cmoe
