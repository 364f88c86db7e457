#include <gmock/gmock.h>

#include <limits>

#include "backend/oracle.h"

namespace cmoe {
namespace {

using namespace oracle;
using ::testing::HasSubstr;

std::vector<double> run(const Backend& backend, const Tensor& x, const Weight& head, const std::vector<int32_t>& targets) {
  std::vector<double> nll(targets.size(), -1.0);
  backend.cross_entropy(x, head, targets, nll);
  return nll;
}

std::vector<int32_t> some_targets(int64_t rows, int64_t vocab) {
  std::vector<int32_t> targets;
  for (int64_t i = 0; i < rows; ++i) targets.push_back(i % 7 == 3 ? -1 : static_cast<int32_t>(i * 7919 % vocab));
  return targets;
}

TEST(CrossEntropy, MatchesTheFormula) {
  on_each_isa([](const Backend& backend, CpuIsa) {
    for (const auto& [rows, vocab] :
         {std::pair<int64_t, int64_t>{1, 1}, {3, 5}, {17, 1024}, {20, 1025}, {6, 3000}, {400, 70}}) {
      const Tensor x = random({rows, 40}, 1), head = random({vocab, 40}, 2);
      const auto targets = some_targets(rows, vocab);
      const Doubles logits = oracle::linear(x, head);
      const auto nll = run(backend, x, backend.prepare(head, DType::f32), targets);
      for (int64_t r = 0; r < rows; ++r) {
        const auto at = static_cast<size_t>(r);
        const double* line = &logits[static_cast<size_t>(r * vocab)];
        double sum = 0;
        for (int64_t j = 0; j < vocab; ++j) sum += std::exp(line[j]);
        // Logits near 20 carry f32 roundings of about 2e-6.
        EXPECT_NEAR(nll[at], targets[at] < 0 ? 0.0 : std::log(sum) - line[targets[at]], 2e-5);
      }
    }
  });
}

TEST(CrossEntropy, RowsDoNotDependOnTheirCompanyOrOnThreads) {
  on_each_isa([](const Backend& backend, CpuIsa isa) {
    const Tensor x = random({350, 33}, 1), head = random({2100, 33}, 2);
    for (DType dtype : {DType::f32, DType::bf16}) {
      if (dtype == DType::bf16 && isa == CpuIsa::amx) continue;  // oneDNN promises no such thing
      const Weight weight = backend.prepare(head, dtype);
      const auto targets = some_targets(350, 2100);
      const auto all = run(backend, x, weight, targets);
      for (int threads : {2, 3}) {
        Threads guard(threads);
        EXPECT_EQ(run(backend, x, weight, targets), all);
      }
      for (int64_t from : {0, 100, 349}) {
        for (int64_t count : {int64_t{1}, int64_t{50}, int64_t{250}}) {
          const int64_t to = std::min<int64_t>(350, from + count);
          const auto part = run(backend, x.rows(from, to), weight, {targets.begin() + from, targets.begin() + to});
          EXPECT_EQ(part, std::vector<double>(all.begin() + from, all.begin() + to));
        }
      }
    }
  });
}

TEST(CrossEntropy, SurvivesLogitsFarApartAndPassesNotANumberOn) {
  on_each_isa([](const Backend& backend, CpuIsa) {
    Tensor x = Tensor::zeros(DType::f32, {3, 1}), head = Tensor::zeros(DType::f32, {3000, 1});
    for (int64_t j = 0; j < 3000; ++j) head.data<float>()[j] = static_cast<float>(j);
    x.data<float>()[0] = 1000.0f;
    x.data<float>()[1] = std::numeric_limits<float>::quiet_NaN();
    const auto nll = run(backend, x, backend.prepare(head, DType::f32), {2998, 5, 5});
    EXPECT_DOUBLE_EQ(nll[0], 1000.0);
    EXPECT_TRUE(std::isnan(nll[1]));
    EXPECT_NEAR(nll[2], std::log(3000.0), 1e-6);
  });
}

TEST(CrossEntropy, AcceptsZeroRowsAndRefusesWrongTargets) {
  const auto backend = make_cpu_backend();
  const Weight head = backend->prepare(random({8, 4}, 1), DType::f32);
  EXPECT_TRUE(run(*backend, Tensor(DType::f32, {0, 4}), head, {}).empty());
  EXPECT_THAT(message_of([&] {
                run(*backend, random({2, 4}, 1), head, {0, 8});
              }),
              HasSubstr("cross_entropy: target 8, expected below the vocabulary of 8"));
  EXPECT_THAT(message_of([&] { run(*backend, random({2, 4}, 1), head, {0}); }), HasSubstr("1 targets and 1 results"));
  EXPECT_THAT(message_of([&] { run(*backend, random({2, 5}, 1), head, {0, 1}); }), HasSubstr("cross_entropy: x is f32 [2, 5]"));
}

}  // namespace
}  // namespace cmoe
