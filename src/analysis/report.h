#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "analysis/expert_outputs.h"
#include "analysis/expert_weights.h"

namespace cmoe {

/// Everything that was measured of a carved model.
struct MoeAnalysis {
  std::string model;
  std::vector<ExpertWeights> weights;  ///< [layers]
  std::vector<ExpertOutputs> outputs;  ///< [layers], or none where no text was given
  std::vector<std::string> prompt;     ///< its tokens' texts
  RoutingMap prompt_routing;           ///< [layers][tokens]
};

nlohmann::json to_json(const ExpertWeights& weights);
ExpertWeights expert_weights_from_json(const nlohmann::json& json);
nlohmann::json to_json(const MoeAnalysis& analysis);

/// One line a layer: what its experts have in common and how well its router chooses.
std::string summary_table(const MoeAnalysis& analysis);

/// A page that stands alone: the summary, curves over layers, and for each layer maps of weight similarity, output similarity
/// and norm rank against score rank; the prompt's routing.
std::string html_report(const MoeAnalysis& analysis);

}  // namespace cmoe
