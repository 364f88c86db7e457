#include "analysis/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "analysis/plots.h"
#include "base/format.h"

namespace cmoe {
namespace {

constexpr const char* kMatrices[] = {"gate", "up", "down"};

nlohmann::json rows_of(const SquareMatrix& matrix) {
  nlohmann::json rows = nlohmann::json::array();
  for (int64_t i = 0; i < matrix.n; ++i)
    rows.push_back(std::vector<double>(matrix.values.begin() + i * matrix.n, matrix.values.begin() + (i + 1) * matrix.n));
  return rows;
}

SquareMatrix matrix_from(const nlohmann::json& rows) {
  SquareMatrix matrix(static_cast<int64_t>(rows.size()));
  for (int64_t i = 0; i < matrix.n; ++i) {
    for (int64_t j = 0; j < matrix.n; ++j) matrix.at(i, j) = rows[static_cast<size_t>(i)][static_cast<size_t>(j)];
  }
  return matrix;
}

// JSON has no NaN: a fit over constant values has no R^2.
nlohmann::json number(double value) { return std::isnan(value) ? nlohmann::json() : nlohmann::json(value); }

nlohmann::json to_json(const ExpertOutputs& outputs) {
  return {{"tokens", outputs.tokens},
          {"cosine", rows_of(outputs.cosine)},
          {"angular", rows_of(outputs.angular)},
          {"chosen_cosine", outputs.chosen_cosine},
          {"other_cosine", outputs.other_cosine},
          {"norm_rank_by_score_rank", rows_of(outputs.rank_table)},
          {"spearman", outputs.spearman},
          {"overlap", outputs.overlap},
          {"overlap_by_chance", outputs.overlap_by_chance},
          {"exact", outputs.exact},
          {"exact_by_chance", outputs.exact_by_chance},
          {"energy", outputs.energy},
          {"energy_best", outputs.energy_best},
          {"norm", outputs.norm},
          {"active_share", outputs.active_share},
          {"tokens_per_expert", outputs.tokens_per_expert}};
}

// Experts a token takes, of the layer's routed ones.
double mean_taken(const ExpertOutputs& outputs) {
  double sum = 0;
  for (const int64_t tokens : outputs.tokens_per_expert) sum += static_cast<double>(tokens);
  return outputs.tokens > 0 ? sum / static_cast<double>(outputs.tokens) : 0;
}

double max_over_mean(const ExpertOutputs& outputs) {
  const double mean = mean_taken(outputs) * static_cast<double>(outputs.tokens) / static_cast<double>(outputs.routed);
  const auto most = *std::max_element(outputs.tokens_per_expert.begin(), outputs.tokens_per_expert.end());
  return mean > 0 ? static_cast<double>(most) / mean : 1;
}

// A curve over layers of every measure that has one value a layer.
std::string curves(const MoeAnalysis& analysis) {
  std::vector<Curve> weights, outputs, router;
  const auto curve = [&](std::string name, const auto& value, const auto& layers) {
    Curve made{.name = std::move(name), .values = {}};
    for (const auto& layer : layers) made.values.push_back(value(layer));
    return made;
  };
  for (size_t m = 0; m < 3; ++m)
    weights.push_back(curve(
        fmt::format("mean neurons of {}", kMatrices[m]),
        [&](const ExpertWeights& w) { return w.matrices[m].average.mean_below_diagonal(w.routed); }, analysis.weights));
  std::string svg = line_plot("cosine of experts' weights", weights);
  if (analysis.outputs.empty()) return svg;
  outputs.push_back(curve(
      "outputs of pairs taken", [](const ExpertOutputs& o) { return o.chosen_cosine; }, analysis.outputs));
  outputs.push_back(curve(
      "of other pairs", [](const ExpertOutputs& o) { return o.other_cosine; }, analysis.outputs));
  router.push_back(curve(
      "largest outputs taken", [](const ExpertOutputs& o) { return o.overlap; }, analysis.outputs));
  router.push_back(curve(
      "by chance", [](const ExpertOutputs& o) { return o.overlap_by_chance; }, analysis.outputs));
  router.push_back(curve(
      "energy taken", [](const ExpertOutputs& o) { return o.energy; }, analysis.outputs));
  router.push_back(curve(
      "most possible", [](const ExpertOutputs& o) { return o.energy_best; }, analysis.outputs));
  return svg + line_plot("cosine of experts' outputs", outputs) + line_plot("the router's choice", router);
}

std::string layer_maps(const MoeAnalysis& analysis, size_t layer) {
  const ExpertWeights& weights = analysis.weights[layer];
  std::string html = fmt::format("<h3>Layer {}</h3>\n<div class=row>", layer);
  for (size_t m = 0; m < 3; ++m)
    html += heat_map(fmt::format("{}, mean neurons", kMatrices[m]), weights.matrices[m].average, -1, 1);
  html += scatter("gate, principal components", weights.matrices[0].components, weights.shared);
  if (layer < analysis.outputs.size()) {
    const ExpertOutputs& outputs = analysis.outputs[layer];
    html += heat_map("outputs, cosine", outputs.cosine, -1, 1);
    SquareMatrix share = outputs.rank_table;
    for (double& value : share.values) value /= std::max<double>(1, static_cast<double>(outputs.tokens));
    html += heat_map("norm rank (down), score rank", share, 0, 1);
  }
  return html + "</div>\n";
}

}  // namespace

nlohmann::json to_json(const ExpertWeights& weights) {
  nlohmann::json json{{"routed", weights.routed}, {"shared", weights.shared}};
  for (size_t m = 0; m < 3; ++m) {
    const MatrixSimilarity& similarity = weights.matrices[m];
    nlohmann::json& one = json[kMatrices[m]];
    one = {{"flat", rows_of(similarity.flat)}, {"average", rows_of(similarity.average)}, {"components", similarity.components}};
    if (similarity.matched)
      one["matched"] = {{"flat", similarity.matched->flat},
                        {"tau", similarity.matched->tau},
                        {"best_cosine", similarity.matched->best_cosine}};
  }
  for (const std::array<double, 3>& fit : weights.router_r_squared) {
    nlohmann::json& row = json["router_r_squared"].emplace_back();
    for (size_t m = 0; m < 3; ++m) row[kMatrices[m]] = number(fit[m]);
  }
  return json;
}

ExpertWeights expert_weights_from_json(const nlohmann::json& json) {
  ExpertWeights weights{.routed = json.at("routed"), .shared = json.at("shared")};
  for (size_t m = 0; m < 3; ++m) {
    const nlohmann::json& one = json.at(kMatrices[m]);
    weights.matrices[m] = {.flat = matrix_from(one.at("flat")),
                           .average = matrix_from(one.at("average")),
                           .components = one.at("components").get<std::vector<std::array<double, 2>>>()};
    if (one.contains("matched"))
      weights.matrices[m].matched = {
          .flat = one["matched"]["flat"], .tau = one["matched"]["tau"], .best_cosine = one["matched"]["best_cosine"]};
  }
  for (const nlohmann::json& row : json.at("router_r_squared")) {
    std::array<double, 3>& fit = weights.router_r_squared.emplace_back();
    for (size_t m = 0; m < 3; ++m) fit[m] = row.at(kMatrices[m]).is_null() ? std::nan("") : row[kMatrices[m]].get<double>();
  }
  return weights;
}

nlohmann::json to_json(const MoeAnalysis& analysis) {
  nlohmann::json json{{"model", analysis.model}, {"layers", nlohmann::json::array()}};
  for (size_t l = 0; l < analysis.weights.size(); ++l) {
    nlohmann::json layer{{"layer", l}, {"weights", to_json(analysis.weights[l])}};
    if (l < analysis.outputs.size()) layer["outputs"] = to_json(analysis.outputs[l]);
    json["layers"].push_back(std::move(layer));
  }
  if (!analysis.prompt.empty()) json["prompt"] = {{"tokens", analysis.prompt}, {"routing", analysis.prompt_routing}};
  return json;
}

std::string summary_table(const MoeAnalysis& analysis) {
  std::vector<std::string> columns = {"layer", "gate cos", "up cos", "down cos", "router R2"};
  const bool text = !analysis.outputs.empty();
  if (text) {
    for (const char* column :
         {"experts/token", "max/mean", "cos taken", "cos others", "Spearman", "overlap", "chance", "energy", "best"})
      columns.emplace_back(column);
  }
  Table table(columns);
  const auto three = [](double value) { return std::isnan(value) ? std::string() : fmt::format("{:.3f}", value); };
  for (size_t l = 0; l < analysis.weights.size(); ++l) {
    const ExpertWeights& weights = analysis.weights[l];
    std::vector<std::string> row = {std::to_string(l)};
    for (const MatrixSimilarity& matrix : weights.matrices)
      row.push_back(three(matrix.average.mean_below_diagonal(weights.routed)));
    row.push_back(three(weights.router_r_squared[0][0]));
    if (text) {
      const ExpertOutputs& o = analysis.outputs[l];
      for (const double value : {mean_taken(o), max_over_mean(o), o.chosen_cosine, o.other_cosine, o.spearman, o.overlap,
                                 o.overlap_by_chance, o.energy, o.energy_best})
        row.push_back(three(value));
    }
    table.add_row(row);
  }
  return table.text();
}

std::string html_report(const MoeAnalysis& analysis) {
  std::string html =
      "<!DOCTYPE html>\n<meta charset=\"utf-8\">\n<title>cmoe analyze</title>\n<style>body{font-family:sans-serif;margin:2em}"
      ".row{display:flex;flex-wrap:wrap;gap:1em}pre{overflow-x:auto}</style>\n";
  html += "<h1>" + escape_html(analysis.model) + "</h1>\n<pre>" + escape_html(summary_table(analysis)) + "</pre>\n";
  html +=
      "<p>cos: mean cosine of pairs of routed experts, of their mean neurons or of their outputs for one token. router R2: of "
      "the "
      "similarity of router rows against that of the experts' gate. overlap: share of the experts with the largest outputs "
      "that the "
      "router takes. energy: share of the squared output norms.</p>\n<div class=row>";
  html += curves(analysis) + "</div>\n";
  if (!analysis.prompt.empty())
    html += "<h2>Experts that a prompt's tokens take</h2>\n" +
            routing_plot(analysis.prompt, analysis.prompt_routing, analysis.weights.empty() ? 0 : analysis.weights[0].routed);
  html += "<h2>Layers</h2>\n<p>Experts in their order, the shared one last.</p>\n";
  for (size_t l = 0; l < analysis.weights.size(); ++l) html += layer_maps(analysis, l);
  return html;
}

}  // namespace cmoe
