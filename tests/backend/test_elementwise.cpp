#include <gmock/gmock.h>

#include <bit>
#include <limits>
#include <numeric>

#include "backend/cpu/kernels_of.h"
#include "backend/oracle.h"
#include "kernels/cpu/table.h"

namespace cmoe {
namespace {

using namespace oracle;
using ::testing::HasSubstr;

const int64_t kSizes[] = {1, 2, 3, 15, 16, 17, 31, 33, 64, 130, 577};

TEST(Magnitudes, MaximaOfSlicesAndListsMatchPlainLoops) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (CpuIsa isa : available()) {
    SCOPED_TRACE(name_of(isa));
    const kernels::Table& kernels = kernels_of(isa);
    for (int64_t n : {1, 3, 16, 63, 64, 65, 127, 200, 577, 1536}) {
      Tensor x = random({n}, static_cast<int>(n));
      float* value = x.data<float>();
      if (n > 60) value[5] = -0.0f, value[7] = -infinity, value[n - 1] = std::nanf(""), value[n - 2] = -std::nanf("");
      std::vector<int32_t> magnitude(static_cast<size_t>(n));
      for (int64_t i = 0; i < n; ++i) magnitude[i] = std::bit_cast<int32_t>(value[i]) & 0x7fffffff;
      for (int64_t slices : {1, 7, 64, 100, 128, 192, 256, 2048}) {
        std::vector<int32_t> maxima(slices, -1), expected(slices, 0);
        for (int64_t i = 0; i < n; ++i) expected[i % slices] = std::max(expected[i % slices], magnitude[i]);
        kernels.slice_maxima(value, n, slices, maxima.data());
        ASSERT_EQ(maxima, expected) << n << " in " << slices << " slices";
      }
      for (int32_t least : {0, magnitude[0], magnitude[n / 2], 0x7f800000, 0x7fffffff}) {
        std::vector<int32_t> index(n), expected;
        for (int64_t i = 0; i < n; ++i) {
          if (magnitude[i] >= least) expected.push_back(static_cast<int32_t>(i));
        }
        index.resize(kernels.list_magnitudes(value, n, least, index.data()));
        ASSERT_EQ(index, expected) << n << " of at least " << least;
      }
    }
  }
}

TEST(RmsNorm, MatchesTheFormula) {
  on_each_isa([](const Backend& backend, CpuIsa) {
    for (int64_t d : kSizes) {
      Tensor x = random({5, d}, 1, 30.0f), weight = random({d}, 2), y(DType::f32, {5, d});
      Doubles expected;
      for (int64_t t = 0; t < 5; ++t) {
        double sum = 0;
        for (int64_t i = 0; i < d; ++i) sum += std::pow(static_cast<double>(x.row<float>(t)[i]), 2);
        for (int64_t i = 0; i < d; ++i) {
          expected.push_back(static_cast<double>(x.row<float>(t)[i]) / std::sqrt(sum / static_cast<double>(d) + 1e-5) *
                             static_cast<double>(weight.data<float>()[i]));
        }
      }
      backend.rms_norm(x, weight, 1e-5f, y);
      EXPECT_TRUE(close(y, expected, 0, 1e-6));  // a few roundings of 6e-8
      backend.rms_norm(x, weight, 1e-5f, x);
      EXPECT_TRUE(same_bits(x, y));  // in place
    }
  });
}

TEST(Rope, RotatesPairsOfHalves) {
  on_each_isa([](const Backend& backend, CpuIsa) {
    for (int64_t head_dim : {2, 6, 32, 64, 80}) {
      const int64_t half = head_dim / 2;
      const Tensor x = random({3, 4 * head_dim}, 1), cos = random({9, half}, 2), sin = random({9, half}, 3);
      const std::vector<int32_t> positions{8, 0, 3};
      Doubles expected(static_cast<size_t>(x.size()));
      for (int64_t t = 0; t < 3; ++t) {
        for (int64_t h = 0; h < 4; ++h) {
          for (int64_t i = 0; i < half; ++i) {
            const double c = static_cast<double>(cos.row<float>(positions[static_cast<size_t>(t)])[i]);
            const double s = static_cast<double>(sin.row<float>(positions[static_cast<size_t>(t)])[i]);
            const auto at = static_cast<size_t>((t * 4 + h) * head_dim + i);
            const auto a = static_cast<double>(x.span<float>()[at]),
                       b = static_cast<double>(x.span<float>()[at + static_cast<size_t>(half)]);
            expected[at] = a * c - b * s;
            expected[at + static_cast<size_t>(half)] = b * c + a * s;
          }
        }
      }
      Tensor y = x.clone();
      backend.rope(y, head_dim, positions, cos, sin);
      EXPECT_TRUE(close(y, expected, 1e-6, 1e-6));
    }
  });
}

TEST(Swiglu, MatchesTheFormulaFarOutToo) {
  on_each_isa([](const Backend& backend, CpuIsa) {
    for (int64_t n : kSizes) {
      const Tensor gate = random({3, n}, 1, 20.0f), up = random({3, n}, 2);
      Tensor h(DType::f32, {3, n});
      Doubles expected;
      for (size_t i = 0; i < static_cast<size_t>(gate.size()); ++i) {
        const auto g = static_cast<double>(gate.span<float>()[i]);
        expected.push_back(g / (1 + std::exp(-g)) * static_cast<double>(up.span<float>()[i]));
      }
      backend.swiglu(gate, up, h);
      EXPECT_TRUE(close(h, expected, 1e-37, 5e-7));  // exp within 1 ulp, three roundings
      Tensor in_place = gate.clone();
      backend.swiglu(in_place, up, in_place);
      EXPECT_TRUE(same_bits(in_place, h));
    }
    Tensor gate = Tensor::zeros(DType::f32, {1, 4}), up = Tensor::zeros(DType::f32, {1, 4}), h(DType::f32, {1, 4});
    const float gates[] = {-200.0f, 200.0f, std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()};
    for (int i = 0; i < 4; ++i) gate.data<float>()[i] = gates[i], up.data<float>()[i] = 1.0f;
    backend.swiglu(gate, up, h);
    EXPECT_EQ(h.data<float>()[0], 0.0f);
    EXPECT_EQ(h.data<float>()[1], 200.0f);
    EXPECT_TRUE(std::isnan(h.data<float>()[2]));
    EXPECT_EQ(h.data<float>()[3], std::numeric_limits<float>::infinity());
  });
}

// Units in the last place between an f32 result and the double truth; subnormals count in steps of the smallest.
double ulps(float actual, double expected) {
  if (std::isinf(actual) && expected > 3.4028236e38) return 0;
  const double step = std::max(std::ldexp(1.0, std::ilogb(expected) - 23), 0x1p-149);
  return std::abs(static_cast<double>(actual) - expected) / step;
}

TEST(Exp, IsWithinOneAndAHalfUlpsEverywhere) {
  const auto check = [](const kernels::Table& table) {
    double worst = 0;
    std::vector<float> x(1000), y(1000);
    for (int block = -105; block < 90; ++block) {
      for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(block) + static_cast<float>(i) * 0.001f;
      table.exp(x.data(), 1000, y.data());
      for (size_t i = 0; i < x.size(); ++i) worst = std::max(worst, ulps(y[i], std::exp(static_cast<double>(x[i]))));
    }
    EXPECT_LE(worst, 1.5) << table.name;
    const float inf = std::numeric_limits<float>::infinity();
    const float special[] = {0.0f, -inf, inf, std::numeric_limits<float>::quiet_NaN(), -1e30f, 1e30f};
    table.exp(special, 6, y.data());
    EXPECT_EQ(y[0], 1.0f);
    EXPECT_EQ(y[1], 0.0f);
    EXPECT_EQ(y[2], inf);
    EXPECT_TRUE(std::isnan(y[3]));
    EXPECT_EQ(y[4], 0.0f);
    EXPECT_EQ(y[5], inf);
  };
  check(kernels::table_generic());
#ifdef CMOE_X86
  if (cpu_isa() >= CpuIsa::avx2) check(kernels::table_avx2());
  if (cpu_isa() >= CpuIsa::avx512) check(kernels::table_avx512());
#endif
}

TEST(Rounding, ToBf16IsTheTensorsRounding) {
  on_each_isa([](const Backend& backend, CpuIsa) {
    std::vector<float> values;
    for (uint32_t bits = 0; bits < 0xffffff00u - 40503u; bits += 40503u) values.push_back(std::bit_cast<float>(bits));
    const auto n = static_cast<int64_t>(values.size());
    const Tensor source(DType::f32, {n, 1}, nullptr, values.data());
    // A table of one column, embedded in order, widens what narrowing gave.
    std::vector<int32_t> ids(values.size());
    std::iota(ids.begin(), ids.end(), 0);
    Tensor y(DType::f32, {n, 1});
    backend.embed(ids, source.to(DType::bf16), y);
    for (size_t i = 0; i < values.size(); ++i) {
      const auto expected = std::bit_cast<uint32_t>(to_f32(to_bf16(values[i])));
      ASSERT_EQ(std::bit_cast<uint32_t>(y.span<float>()[i]), expected);
    }
  });
  std::vector<float> values{1.0f,
                            -0.0f,
                            1.00390625f,
                            1.01171875f,
                            3.4028235e38f,
                            std::numeric_limits<float>::quiet_NaN(),
                            std::numeric_limits<float>::infinity(),
                            1e-45f,
                            -2.5f};
  std::vector<uint16_t> narrow(values.size());
  kernels::table_generic().narrow_bf16(values.data(), static_cast<int64_t>(values.size()), narrow.data());
  for (size_t i = 0; i < values.size(); ++i) EXPECT_EQ(narrow[i], to_bf16(values[i])) << values[i];
}

TEST(Add, AddsInPlace) {
  on_each_isa([](const Backend& backend, CpuIsa) {
    for (int64_t n : kSizes) {
      const Tensor x = random({2, n}, 1), y = random({2, n}, 2);
      Tensor sum = y.clone();
      backend.add(x, sum);
      for (int64_t i = 0; i < sum.size(); ++i) EXPECT_EQ(sum.data<float>()[i], x.data<float>()[i] + y.data<float>()[i]);
      const Tensor bias = random({n}, 3);
      Tensor biased = y.clone();
      backend.add_bias(bias, biased);
      for (int64_t i = 0; i < sum.size(); ++i)
        EXPECT_EQ(biased.data<float>()[i], y.data<float>()[i] + bias.data<float>()[i % n]);
    }
  });
}

TEST(Rows, EmbedAndGatherCopyThem) {
  const auto backend = make_cpu_backend();
  const Tensor table = random({7, 19}, 1);
  const std::vector<int32_t> ids{6, 0, 6, 3};
  Tensor y(DType::f32, {4, 19});
  for (const Tensor& source : {table, table.to(DType::bf16)}) {
    backend->embed(ids, source, y);
    const Tensor expected = source.to(DType::f32);
    for (size_t i = 0; i < ids.size(); ++i) {
      for (int64_t j = 0; j < 19; ++j) EXPECT_EQ(y.row<float>(static_cast<int64_t>(i))[j], expected.row<float>(ids[i])[j]);
    }
  }
  backend->gather_rows(table, ids, y);
  for (size_t i = 0; i < ids.size(); ++i) {
    for (int64_t j = 0; j < 19; ++j) EXPECT_EQ(y.row<float>(static_cast<int64_t>(i))[j], table.row<float>(ids[i])[j]);
  }
}

TEST(Elementwise, DoesNotDependOnThreadsOrOnTheOtherRows) {
  on_each_isa([](const Backend& backend, CpuIsa) {
    const Tensor x = random({700, 65}, 1), weight = random({65}, 2);
    Tensor norm(DType::f32, {700, 65}), glu(DType::f32, {700, 65});
    backend.rms_norm(x, weight, 1e-5f, norm);
    backend.swiglu(x, norm, glu);
    for (int threads : {2, 3}) {
      Threads guard(threads);
      Tensor a(DType::f32, {700, 65}), b(DType::f32, {700, 65});
      backend.rms_norm(x, weight, 1e-5f, a);
      backend.swiglu(x, norm, b);
      EXPECT_TRUE(same_bits(a, norm) && same_bits(b, glu));
    }
    Tensor row(DType::f32, {1, 65});
    backend.rms_norm(x.rows(31, 32), weight, 1e-5f, row);
    EXPECT_TRUE(same_bits(row, norm.rows(31, 32)));
    backend.swiglu(x.rows(31, 32), norm.rows(31, 32), row);
    EXPECT_TRUE(same_bits(row, glu.rows(31, 32)));
  });
}

TEST(Elementwise, AcceptsZeroRows) {
  const auto backend = make_cpu_backend();
  Tensor none(DType::f32, {0, 8});
  backend->rms_norm(none, random({8}, 1), 1e-5f, none);
  backend->rope(none, 4, {}, random({3, 2}, 1), random({3, 2}, 1));
  backend->swiglu(none, none, none);
  backend->add(none, none);
  backend->add_bias(random({8}, 1), none);
  backend->embed({}, random({3, 8}, 1), none);
  backend->gather_rows(random({3, 8}, 1), {}, none);
}

TEST(Elementwise, RefusesWrongShapesAndIndices) {
  const auto backend = make_cpu_backend();
  Tensor x = random({3, 8}, 1), y = random({3, 7}, 1);
  const Tensor cos = random({5, 2}, 1);
  const std::vector<int32_t> three{0, 1, 5}, negative{0, -1, 1};
  EXPECT_THAT(message_of([&] { backend->rms_norm(x, random({7}, 1), 1e-5f, x); }),
              HasSubstr("rms_norm: weight is f32 [7], expected f32 [8]"));
  EXPECT_THAT(message_of([&] { backend->rms_norm(x, random({8}, 1), 1e-5f, y); }), HasSubstr("rms_norm: y is f32 [3, 7]"));
  EXPECT_THAT(message_of([&] { backend->rope(x, 4, three, cos, cos); }), HasSubstr("rope: index 5, expected 0 .. 4"));
  EXPECT_THAT(message_of([&] { backend->rope(x, 3, three, cos, cos); }), HasSubstr("even head_dim"));
  EXPECT_THAT(message_of([&] { backend->swiglu(x, y, x); }), HasSubstr("swiglu: f32 [3, 8] and f32 [3, 7]"));
  EXPECT_THAT(message_of([&] { backend->add(x, y); }), HasSubstr("add: f32 [3, 8] and f32 [3, 7]"));
  EXPECT_THAT(message_of([&] { backend->add_bias(random({7}, 1), x); }),
              HasSubstr("add_bias: bias is f32 [7], expected f32 [8]"));
  EXPECT_THAT(message_of([&] { backend->embed(three, random({5, 8}, 1), x); }), HasSubstr("embed: index 5, expected 0 .. 4"));
  EXPECT_THAT(message_of([&] { backend->embed(negative, random({5, 8}, 1), x); }), HasSubstr("embed: index -1"));
  EXPECT_THAT(message_of([&] { backend->embed(three, Tensor(DType::i32, {5, 8}), x); }), HasSubstr("expected f32 or bf16"));
  EXPECT_THAT(message_of([&] { backend->gather_rows(x, three, x); }), HasSubstr("gather_rows: index 5, expected 0 .. 2"));
}

}  // namespace
}  // namespace cmoe
