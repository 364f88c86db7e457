#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu_info.h"
#include "base/parallel.h"

// Plain versions of the backend's operations, in double: the specification that the kernels are held to.
namespace cmoe::oracle {

using Doubles = std::vector<double>;

inline Tensor random(Shape shape, uint32_t seed, float scale = 1.0f) {
  Tensor tensor(DType::f32, std::move(shape));
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  for (float& value : tensor.span<float>()) value = normal(engine);
  return tensor;
}

/// Multiples of 1/64 whose products and short sums are exact in f32 (and in bf16).
inline Tensor random_exact(Shape shape, uint32_t seed) {
  Tensor tensor(DType::f32, std::move(shape));
  std::mt19937 engine(seed);
  for (float& value : tensor.span<float>()) value = static_cast<float>(static_cast<int>(engine() % 129) - 64) / 64.0f;
  return tensor;
}

/// x W^T of x [t, k], w [n, k].
inline Doubles linear(const Tensor& x, const Tensor& w) {
  const int64_t t = x.dim(0), k = x.dim(1), n = w.dim(0);
  Doubles y(static_cast<size_t>(t * n));
  for (int64_t i = 0; i < t; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t l = 0; l < k; ++l) sum += static_cast<double>(x.row<float>(i)[l]) * static_cast<double>(w.row<float>(j)[l]);
      y[static_cast<size_t>(i * n + j)] = sum;
    }
  }
  return y;
}

inline Tensor transposed(const Tensor& a) {
  Tensor b(DType::f32, {a.dim(1), a.dim(0)});
  for (int64_t i = 0; i < a.dim(0); ++i) {
    for (int64_t j = 0; j < a.dim(1); ++j) b.row<float>(j)[i] = a.row<float>(i)[j];
  }
  return b;
}

/// Causal attention of one sequence, nothing cached: q [t, heads * hd], k and v [t, kv_heads * hd].
inline Doubles attention(const Tensor& q, const Tensor& k, const Tensor& v, int64_t head_dim) {
  const int64_t t = q.dim(0), heads = q.dim(1) / head_dim, group = heads / (k.dim(1) / head_dim);
  Doubles out(static_cast<size_t>(q.size()));
  for (int64_t i = 0; i < t; ++i) {
    for (int64_t h = 0; h < heads; ++h) {
      Doubles weight(static_cast<size_t>(i + 1));
      double top = -INFINITY, sum = 0;
      for (int64_t j = 0; j <= i; ++j) {
        double score = 0;
        for (int64_t d = 0; d < head_dim; ++d) {
          score += static_cast<double>(q.row<float>(i)[h * head_dim + d]) *
                   static_cast<double>(k.row<float>(j)[h / group * head_dim + d]);
        }
        weight[static_cast<size_t>(j)] = score / std::sqrt(static_cast<double>(head_dim));
        top = std::max(top, weight[static_cast<size_t>(j)]);
      }
      for (double& w : weight) sum += w = std::exp(w - top);
      for (int64_t j = 0; j <= i; ++j) {
        for (int64_t d = 0; d < head_dim; ++d) {
          out[static_cast<size_t>((i * heads + h) * head_dim + d)] +=
              weight[static_cast<size_t>(j)] / sum * static_cast<double>(v.row<float>(j)[h / group * head_dim + d]);
        }
      }
    }
  }
  return out;
}

/// |actual - expected| <= absolute + relative * |expected| everywhere; the worst element is printed.
inline ::testing::AssertionResult close(const Tensor& actual, const Doubles& expected, double absolute, double relative) {
  if (static_cast<size_t>(actual.size()) != expected.size()) {
    return ::testing::AssertionFailure() << actual.size() << " elements, expected " << expected.size();
  }
  size_t worst = 0;
  double excess = -1;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double difference = std::abs(static_cast<double>(actual.span<float>()[i]) - expected[i]);
    const double over = difference - absolute - relative * std::abs(expected[i]);
    if (!(over <= excess)) excess = over, worst = i;
  }
  if (excess <= 0) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "element " << worst << " of " << to_string(actual.shape()) << ": "
                                       << actual.span<float>()[worst] << ", expected " << expected[worst];
}

inline ::testing::AssertionResult same_bits(const Tensor& a, const Tensor& b) {
  if (a.shape() != b.shape()) return ::testing::AssertionFailure() << to_string(a.shape()) << " and " << to_string(b.shape());
  for (int64_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(a.data<float>() + i, b.data<float>() + i, sizeof(float)) != 0) {
      return ::testing::AssertionFailure() << "element " << i << " of " << to_string(a.shape()) << ": " << a.data<float>()[i]
                                           << " and " << b.data<float>()[i];
    }
  }
  return ::testing::AssertionSuccess();
}

/// The instruction sets of this machine.
inline std::vector<CpuIsa> available() {
  std::vector<CpuIsa> sets;
  for (CpuIsa isa : {CpuIsa::generic, CpuIsa::avx2, CpuIsa::avx512, CpuIsa::avx512_bf16, CpuIsa::amx}) {
    if (isa <= cpu_isa()) sets.push_back(isa);
  }
  return sets;
}

/// Runs body on each available instruction set; a failure names it.
inline void on_each_isa(const std::function<void(const Backend&, CpuIsa)>& body) {
  for (CpuIsa isa : available()) {
    SCOPED_TRACE(name_of(isa));
    body(*make_cpu_backend(isa), isa);
  }
}

/// The message of the Error that body throws; empty when it throws none.
inline std::string message_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

struct Threads {
  explicit Threads(int count) { set_num_threads(count); }
  ~Threads() { set_num_threads(1); }
};

}  // namespace cmoe::oracle
