#include "analysis/expert_weights.h"

#include <algorithm>
#include <cmath>

#include "analysis/linear_assignment.h"
#include "base/error.h"
#include "base/parallel.h"

namespace cmoe {
namespace {

// Neurons as rows [m, d], whichever way the matrix stores them.
Tensor neuron_rows(const Checkpoint& checkpoint, const std::string& name, int64_t m, int64_t d, bool columns) {
  if (!columns) return checkpoint.tensors->read(name, {m, d}, DType::f32);
  const Tensor stored = checkpoint.tensors->read(name, {d, m}, DType::f32);
  Tensor rows(DType::f32, {m, d});
  for (int64_t i = 0; i < d; ++i) {
    for (int64_t j = 0; j < m; ++j) rows.row<float>(j)[i] = stored.row<float>(i)[j];
  }
  return rows;
}

Tensor unit_rows(const Tensor& x) {
  Tensor unit = x.clone();
  for (int64_t i = 0; i < x.dim(0); ++i) {
    const std::span<float> row(unit.row<float>(i), static_cast<size_t>(x.dim(1)));
    const double length = std::sqrt(dot(row, row));
    for (float& value : row) value = static_cast<float>(length > 0 ? value / length : 0);
  }
  return unit;
}

MatrixSimilarity::Matched match_neurons(const Backend& backend, std::span<const Tensor> experts,
                                        const SquareMatrix& flat_dots) {
  const auto routed = static_cast<int64_t>(experts.size());
  const int64_t m = experts[0].dim(0), d = experts[0].dim(1);
  std::vector<Tensor> units;
  std::vector<Weight> weights;
  for (const Tensor& expert : experts) {
    units.push_back(unit_rows(expert));
    weights.push_back(backend.prepare(units.back(), DType::f32));
  }
  // Cosines of the neurons of each pair by the backend, which uses all threads; the matches of the pairs side by side.
  std::vector<std::pair<int64_t, int64_t>> pairs;
  for (int64_t i = 1; i < routed; ++i) {
    for (int64_t j = 0; j < i; ++j) pairs.emplace_back(i, j);
  }
  std::vector<MatrixSimilarity::Matched> found(pairs.size());
  std::vector<Tensor> cosines(pairs.size());
  for (size_t p = 0; p < pairs.size(); ++p) {
    cosines[p] = Tensor(DType::f32, {m, m});
    backend.linear(units[static_cast<size_t>(pairs[p].first)], weights[static_cast<size_t>(pairs[p].second)], cosines[p]);
  }
  parallel_for(static_cast<int64_t>(pairs.size()), 1, [&](int64_t begin, int64_t end) {
    for (auto p = static_cast<size_t>(begin); p < static_cast<size_t>(end); ++p) {
      const auto [i, j] = pairs[p];
      const std::vector<int32_t> match = assign_rows(cosines[p]);
      double sum = 0, best = 0;
      for (int64_t row = 0; row < m; ++row) {
        const float* values = cosines[p].row<float>(row);
        best += *std::max_element(values, values + m);
        const auto neuron = [&](int64_t expert, int64_t index) {
          return std::span<const float>(experts[static_cast<size_t>(expert)].row<float>(index), static_cast<size_t>(d));
        };
        sum += dot(neuron(i, row), neuron(j, match[static_cast<size_t>(row)]));
      }
      const double lengths = std::sqrt(flat_dots.at(i, i) * flat_dots.at(j, j));
      found[p] = {
          .flat = lengths > 0 ? sum / lengths : 0, .tau = kendall_tau(match), .best_cosine = best / static_cast<double>(m)};
    }
  });
  MatrixSimilarity::Matched mean;
  for (const MatrixSimilarity::Matched& one : found) {
    mean.flat += one.flat / static_cast<double>(found.size());
    mean.tau += one.tau / static_cast<double>(found.size());
    mean.best_cosine += one.best_cosine / static_cast<double>(found.size());
  }
  return mean;
}

}  // namespace

ExpertWeights analyze_expert_weights(const Checkpoint& checkpoint, const Backend& backend, int64_t layer, bool match) {
  const ModelConfig& config = checkpoint.config;
  CMOE_CHECK(config.moe && config.moe->num_routed_experts() > 0, "{}: has no routed experts; analyze takes a carved model",
             checkpoint.path.string());
  const MoeConfig& moe = *config.moe;
  const int64_t d = config.hidden_size, m = moe.moe_intermediate_size;
  const std::string prefix = fmt::format("model.layers.{}.mlp.", layer);
  ExpertWeights result{.routed = moe.num_routed_experts(), .shared = moe.num_shared_experts > 0};

  const char* names[] = {"gate_proj", "up_proj", "down_proj"};
  for (size_t matrix = 0; matrix < 3; ++matrix) {
    const bool columns = matrix == 2;
    std::vector<Tensor> experts;
    for (int64_t e = 0; e < result.routed; ++e)
      experts.push_back(
          neuron_rows(checkpoint, fmt::format("{}experts.{}.{}.weight", prefix, e, names[matrix]), m, d, columns));
    MatrixSimilarity& similarity = result.matrices[matrix];
    Tensor flat(DType::f32, {result.routed, m * d});
    for (int64_t e = 0; e < result.routed; ++e)
      std::copy_n(experts[static_cast<size_t>(e)].data<float>(), m * d, flat.row<float>(e));
    similarity.flat = row_cosines(flat);
    if (match && result.routed > 1) {
      SquareMatrix lengths(result.routed);
      for (int64_t e = 0; e < result.routed; ++e) {
        const std::span<const float> row(flat.row<float>(e), static_cast<size_t>(m * d));
        lengths.at(e, e) = dot(row, row);
      }
      similarity.matched = match_neurons(backend, experts, lengths);
    }
    if (result.shared)
      experts.push_back(neuron_rows(checkpoint, fmt::format("{}shared_experts.{}.weight", prefix, names[matrix]),
                                    moe.num_shared_experts * m, d, columns));
    const Tensor means = row_means(experts);
    similarity.average = row_cosines(means);
    similarity.components = principal_components(means);
  }

  std::vector<std::string> router = {"router.weight"};
  if (moe.router != RouterKind::linear) router = {"router.gate_proj.weight", "router.up_proj.weight"};
  for (const std::string& name : router) {
    const SquareMatrix rows = row_cosines(checkpoint.tensors->read(prefix + name, {result.routed, d}, DType::f32));
    std::array<double, 3>& r_squared = result.router_r_squared.emplace_back();
    for (size_t matrix = 0; matrix < 3; ++matrix)
      r_squared[matrix] = r_squared_below_diagonal(rows, result.matrices[matrix].average, result.routed);
  }
  return result;
}

}  // namespace cmoe
