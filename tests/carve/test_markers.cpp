#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "base/error.h"
#include "base/parallel.h"
#include "carve/markers.h"

namespace cmoe {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// The oracle: sort by (|h| descending, index ascending), take k, sort the indices.
std::vector<int32_t> sorted_top_k(const float* h, int64_t neurons, int64_t k) {
  std::vector<int32_t> order(neurons);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return std::abs(h[a]) > std::abs(h[b]); });
  order.resize(k);
  std::sort(order.begin(), order.end());
  return order;
}

TEST(Markers, AreTheSortedTopKForAnyShapeAndWithTies) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  const float infinity = std::numeric_limits<float>::infinity();
  for (int threads : {1, 2}) {
    set_num_threads(threads);
    for (int trial = 0; trial < 150; ++trial) {
      const int64_t neurons = trial % 3 ? 1 + random() % 300 : 1 + random() % 3000;
      const int64_t k = trial % 5 == 0 ? 1 + random() % neurons : std::min<int64_t>(neurons, 10);
      const int64_t tokens = trial % 7;
      std::vector<float> h(tokens * neurons);
      for (float& value : h) value = normal(random);
      if (trial % 4 == 1) {  // many ties, both signs, zeros of both signs
        for (float& value : h) value = std::round(value);
      }
      if (trial % 4 == 2 && !h.empty()) h[random() % h.size()] = -infinity;
      if (trial % 4 == 3) std::fill(h.begin(), h.end(), -0.0f);
      std::vector<int32_t> marks(tokens * k, -1);
      mark_top_k(h.data(), tokens, neurons, k, marks.data());
      for (int64_t t = 0; t < tokens; ++t) {
        ASSERT_EQ(std::vector<int32_t>(&marks[t * k], &marks[t * k] + k), sorted_top_k(&h[t * neurons], neurons, k))
            << "neurons " << neurons << ", k " << k << ", token " << t;
      }
    }
  }
  set_num_threads(1);
}

TEST(Markers, TiesGoToTheSmallerIndex) {
  const std::vector<float> h{1, -2, 2, 0.5, -2, 3};
  std::vector<int32_t> marks(3);
  mark_top_k(h.data(), 1, 6, 3, marks.data());
  EXPECT_THAT(marks, ElementsAre(1, 2, 5));
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

TEST(Markers, RefusesNanAndImpossibleCounts) {
  std::vector<float> h(5 * 100, 1.0f);
  h[3 * 100 + 42] = std::nanf("");
  std::vector<int32_t> marks(5 * 100);
  EXPECT_THAT(message_of([&] { mark_top_k(h.data(), 5, 100, 10, marks.data(), 2048); }),
              HasSubstr("token 2051, neuron 42 is NaN"));
  h[3 * 100 + 42] = -std::nanf("");
  EXPECT_THAT(message_of([&] { mark_top_k(h.data(), 5, 100, 100, marks.data()); }), HasSubstr("token 3, neuron 42 is NaN"));
  EXPECT_THAT(message_of([&] { mark_top_k(h.data(), 1, 100, 101, marks.data()); }),
              HasSubstr("k_act is 101, expected 1 to 100"));
  EXPECT_THAT(message_of([&] { mark_top_k(h.data(), 1, 100, 0, marks.data()); }), HasSubstr("k_act is 0, expected 1 to 100"));
}

TEST(Markers, NormalizedRowsHaveLengthOne) {
  Tensor rows = Tensor::zeros(DType::f32, {3, 4});
  for (int i = 0; i < 8; ++i) rows.data<float>()[i] = static_cast<float>(i - 3);
  const Tensor unit = normalize_rows(rows);
  for (int r = 0; r < 2; ++r) {
    double sum = 0, dot = 0, norm = 0;
    for (int c = 0; c < 4; ++c) {
      sum += std::pow(unit.row<float>(r)[c], 2);
      dot += unit.row<float>(r)[c] * rows.row<float>(r)[c];
      norm += std::pow(rows.row<float>(r)[c], 2);
    }
    EXPECT_NEAR(sum, 1, 1e-6);
    EXPECT_NEAR(dot, std::sqrt(norm), 1e-5);
  }
  for (int c = 0; c < 4; ++c) EXPECT_EQ(unit.row<float>(2)[c], 0);
  EXPECT_THAT(message_of([] { normalize_rows(Tensor::zeros(DType::f32, {3})); }),
              HasSubstr("shape [3], expected [rows, columns]"));
}

TEST(Markers, CountsAndListsAgreeWithTheDenseMatrix) {
  std::mt19937 random(2);
  const int64_t tokens = 60, neurons = 40, k = 5;
  std::vector<float> h(tokens * neurons);
  for (float& value : h) value = static_cast<float>(random() % 1000);
  std::vector<int32_t> marks(tokens * k);
  mark_top_k(h.data(), tokens, neurons, k, marks.data());
  std::vector<std::vector<bool>> dense(tokens, std::vector<bool>(neurons, false));
  for (int64_t i = 0; i < tokens * k; ++i) dense[i / k][marks[i]] = true;

  const std::vector<int64_t> count = count_marks(marks, neurons);
  EXPECT_EQ(std::accumulate(count.begin(), count.end(), int64_t{0}), tokens * k);
  const std::vector<int32_t> candidates{0, 3, 4, 17, 38, 39};
  const SparseBits bits = select_marks(marks, k, neurons, candidates), columns = transpose(bits);
  ASSERT_EQ(bits.rows, tokens);
  ASSERT_EQ(columns.rows, 6);
  for (int64_t c = 0; c < 6; ++c) {
    std::vector<int32_t> expected;
    for (int64_t t = 0; t < tokens; ++t) {
      if (dense[t][candidates[c]]) expected.push_back(static_cast<int32_t>(t));
      EXPECT_EQ(std::count(bits.row(t).begin(), bits.row(t).end(), c), dense[t][candidates[c]] ? 1 : 0);
    }
    EXPECT_EQ(std::vector<int32_t>(columns.row(c).begin(), columns.row(c).end()), expected);
    EXPECT_EQ(count[candidates[c]], static_cast<int64_t>(expected.size()));
  }
}

TEST(Markers, SelectRefusesWhatIsOutOfRange) {
  const std::vector<int32_t> marks{0, 5, 1, 9}, ascending{1, 2}, descending{2, 1};
  EXPECT_THAT(message_of([&] { select_marks(marks, 2, 9, ascending); }), HasSubstr("token 1 marks neuron 9, expected 0 to 8"));
  EXPECT_THAT(message_of([&] { select_marks(marks, 2, 10, descending); }), HasSubstr("candidate 1 is neuron 1 after neuron 2"));
  EXPECT_THAT(message_of([&] { select_marks(marks, 3, 10, ascending); }),
              HasSubstr("4 marks, expected a multiple of k_act = 3"));
  EXPECT_THAT(message_of([&] { count_marks(marks, 9); }), HasSubstr("a mark on neuron 9, expected 0 to 8"));
}

}  // namespace
}  // namespace cmoe
