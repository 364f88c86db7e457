// The loss of the head and its gradient, a block of rows at a time: logits, softmax, and back through the head.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "backend/cpu/cpu_backend.h"
#include "base/error.h"
#include "base/parallel.h"

namespace cmoe::cpu {
namespace {

constexpr int64_t kRows = 518;  // rows of logits held at a time: 102 MB with a vocabulary of 49,152

// What turns a row into probabilities: exp(z - max) / sum.
struct Softmax {
  float max = 0;
  double sum = 0;
  double log_sum() const { return static_cast<double>(max) + std::log(sum); }
};

// Leaves scale z in place of z: sum_exp has no scale of its own.
Softmax softmax_of(const kernels::Table& table, float* z, int64_t n, float scale) {
  if (scale != 1.0f) {
    for (int64_t i = 0; i < n; ++i) z[i] *= scale;
  }
  Softmax result;
  table.sum_exp(z, n, &result.max, &result.sum);
  return result;
}

// Adds weight tau^2 d KL(p' || p) / dz = weight tau (p - p') to g, p = softmax(z / tau), p' the teacher's; returns KL. z and
// z_teacher are used up.
double add_distillation(const kernels::Table& table, float* z, float* z_teacher, int64_t n, const Backend::LossWeights& weights,
                        float* g) {
  const float inverse = 1.0f / weights.temperature, factor = weights.kl * weights.temperature;
  const Softmax p = softmax_of(table, z, n, inverse), q = softmax_of(table, z_teacher, n, inverse);
  // KL = sum q (log q - log p) = sum q (z' - z) - log Z' + log Z
  double kl = p.log_sum() - q.log_sum();
  for (int64_t begin = 0; begin < n; begin += 256) {
    const int64_t count = std::min<int64_t>(256, n - begin);
    float probability[256], difference[256];
    table.exp_scaled(z_teacher + begin, count, 1.0f, q.max, static_cast<float>(1.0 / q.sum), probability);
    for (int64_t i = 0; i < count; ++i) difference[i] = z_teacher[begin + i] - z[begin + i];
    kl += static_cast<double>(table.dot(probability, difference, count));
    table.add_scaled(probability, -factor, count, g + begin);
    table.exp_scaled(z + begin, count, 1.0f, p.max, static_cast<float>(1.0 / p.sum), probability);
    table.add_scaled(probability, factor, count, g + begin);
  }
  return std::max(kl, 0.0);
}

}  // namespace

void CpuBackend::cross_entropy_backward(const Tensor& x, const Weight& head, std::span<const int32_t> targets,
                                        const LossWeights& weights, std::span<double> nll, std::span<double> kl,
                                        Tensor& dx) const {
  const char* where = "cross_entropy_backward";
  CMOE_CHECK(head.defined(), "{}: the head is empty; prepare() it first", where);
  const int64_t vocab = head.out_features();
  check_matrix(where, "x", x, -1, head.in_features());
  const int64_t rows = x.dim(0);
  check_matrix(where, "dx", dx, rows, x.dim(1));
  CMOE_CHECK(static_cast<int64_t>(targets.size()) == rows && nll.size() == targets.size() && kl.size() == targets.size(),
             "{}: {} targets, {} and {} results, expected one per row of x {}", where, targets.size(), nll.size(), kl.size(),
             to_string(x.shape()));
  for (int32_t target : targets)
    CMOE_CHECK(target < vocab, "{}: target {}, expected below the vocabulary of {}", where, target, vocab);
  const bool distil = weights.kl > 0;
  if (distil) {
    CMOE_CHECK(weights.teacher_x && weights.teacher_head && weights.temperature > 0,
               "{}: distillation needs the teacher's rows and head and a temperature above 0; got {}", where,
               weights.temperature);
    check_matrix(where, "teacher_x", *weights.teacher_x, rows, weights.teacher_head->in_features());
    CMOE_CHECK(weights.teacher_head->out_features() == vocab, "{}: the teacher's vocabulary is {}, expected {}", where,
               weights.teacher_head->out_features(), vocab);
  }

  Tensor logits(DType::f32, {std::min(rows, kRows), vocab});
  Tensor gradient = distil ? Tensor(DType::f32, logits.shape()) : Tensor();
  Tensor teacher = distil ? Tensor(DType::f32, logits.shape()) : Tensor();
  for (int64_t begin = 0; begin < rows; begin += kRows) {
    const int64_t count = std::min(kRows, rows - begin);
    Tensor z = logits.rows(0, count);
    linear(x.rows(begin, begin + count), head, z, false);
    Tensor z_teacher = distil ? teacher.rows(0, count) : Tensor();
    if (distil) linear(weights.teacher_x->rows(begin, begin + count), *weights.teacher_head, z_teacher, false);
    Tensor dz = distil ? gradient.rows(0, count) : z;
    parallel_for(count, 1, [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; ++r) {
        const auto at = static_cast<size_t>(begin + r);
        float* g = dz.row<float>(r);
        nll[at] = kl[at] = 0;
        if (targets[at] < 0) {
          std::memset(g, 0, static_cast<size_t>(vocab) * sizeof(float));
          continue;
        }
        float* line = z.row<float>(r);
        const double target_logit = static_cast<double>(line[targets[at]]);
        const Softmax p = softmax_of(table_, line, vocab, 1.0f);
        nll[at] = p.log_sum() - target_logit;
        // d nll / dz = softmax(z) - onehot
        table_.exp_scaled(line, vocab, 1.0f, p.max, static_cast<float>(static_cast<double>(weights.nll) / p.sum), g);
        if (distil) {
          kl[at] = add_distillation(table_, line, z_teacher.row<float>(r), vocab, weights, g);
        }
        g[targets[at]] -= weights.nll;
      }
    });
    Tensor out = dx.rows(begin, begin + count);
    linear_transposed(dz, head, out, false);
  }
}

}  // namespace cmoe::cpu
