#include "model/expert_plan.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "model/expected_tensors.h"
#include "model/expert_loads.h"

namespace cmoe {
namespace {

// The layer and routed expert that a tensor belongs to; false for tensors that every rank holds.
bool find_expert(const std::string& name, int64_t& layer, GlobalExpert& expert) {
  const std::string layers = "model.layers.", experts = ".mlp.experts.";
  const size_t at = name.find(experts);
  if (at == std::string::npos || name.rfind(layers, 0) != 0) return false;
  layer = std::stoll(name.substr(layers.size()));
  expert = static_cast<GlobalExpert>(std::stoi(name.substr(at + experts.size())));
  return true;
}

// Matrices that Transformer::weight_bytes() counts.
bool is_matrix(const ExpectedTensor& tensor) {
  return tensor.shape.size() == 2 && tensor.name.find(".mlp.router.") == std::string::npos;
}

int64_t elements(const Shape& shape) {
  int64_t product = 1;
  for (int64_t extent : shape) product *= extent;
  return product;
}

}  // namespace

std::vector<ExpertPlacement> place_experts(const Checkpoint& checkpoint, PlacementKind kind, int ranks, int redundant_experts) {
  const ModelConfig& config = checkpoint.config;
  CMOE_CHECK(config.moe, "{}: is dense and has no experts to place", checkpoint.path.string());
  const auto layers = static_cast<size_t>(config.num_hidden_layers);
  const auto routed = static_cast<int32_t>(config.moe->num_routed_experts());
  if (kind == PlacementKind::contiguous) {
    CMOE_CHECK(redundant_experts == 0,
               "redundant_experts: {} with contiguous placement; expected 0, or --placement balanced, which knows the hot ones",
               redundant_experts);
    return std::vector<ExpertPlacement>(layers, ExpertPlacement::contiguous(routed, ranks));
  }
  const ExpertLoads loads = read_expert_loads(checkpoint);
  std::vector<ExpertPlacement> placement;
  for (const std::vector<int64_t>& layer : loads.layers) {
    const std::vector<double> load(layer.begin(), layer.end());
    placement.push_back(ExpertPlacement::balanced(load, ranks, redundant_experts));
  }
  return placement;
}

RankPlan plan_rank(const Checkpoint& checkpoint, DType dtype, std::span<const ExpertPlacement> placement, int rank) {
  RankPlan plan;
  for (const ExpertPlacement& layer : placement) plan.experts += static_cast<int64_t>(layer.local_experts(rank).size());
  for (const ExpectedTensor& tensor : expected_tensors(checkpoint.config)) {
    int64_t layer = 0;
    GlobalExpert expert{};
    if (find_expert(tensor.name, layer, expert) && !placement[static_cast<size_t>(layer)].find_local(expert, rank)) continue;
    plan.read_bytes += checkpoint.tensors->stored_bytes(tensor.name);
    if (is_matrix(tensor)) plan.weight_bytes += elements(tensor.shape) * size_of(dtype);
    // The head of a tied model is prepared for products, beside the table that tokens are looked up in.
    if (tensor.name == "model.embed_tokens.weight" && checkpoint.config.tie_word_embeddings)
      plan.weight_bytes += elements(tensor.shape) * size_of(dtype);
  }
  return plan;
}

std::vector<double> experts_per_token(const MoeConfig& moe) {
  const int64_t routed = moe.num_routed_experts();
  std::vector<double> probability(static_cast<size_t>(routed) + 1, 0.0);
  if (moe.selector == Selector::topk || routed == 0) {
    probability[static_cast<size_t>(std::min(moe.num_experts_per_tok, routed))] = 1;
    return probability;
  }
  // Binomial: C(R, k) p^k (1 - p)^(R - k), p = A / R.
  const double n = static_cast<double>(routed), p = static_cast<double>(moe.num_experts_per_tok) / n;
  for (int64_t k = 0; k <= routed; ++k) {
    const double x = static_cast<double>(k);
    const double ways = std::exp(std::lgamma(n + 1) - std::lgamma(x + 1) - std::lgamma(n - x + 1));
    probability[static_cast<size_t>(k)] = ways * std::pow(p, x) * std::pow(1 - p, n - x);
  }
  return probability;
}

double wire_bytes_per_token(const ModelConfig& config, std::span<const ExpertPlacement> placement, DType wire) {
  constexpr int64_t kTokens = 1 << 20;  // many, so that rounding to bytes does not show
  const std::vector<double> sizes = experts_per_token(*config.moe);
  const WireFormat format{config.hidden_size, wire};
  double total = 0;
  for (const ExpertPlacement& layer : placement) {
    if (layer.ranks() == 1) continue;
    const WireBytes per_rank = expected_wire_bytes(kTokens, sizes, layer, Transport::all_to_all, format);
    const WireBytes to_all = expected_wire_bytes(kTokens, sizes, layer, Transport::all_gather, format);
    const bool gather = choose_transport(per_rank.ids + per_rank.rows, to_all.ids + to_all.rows) == Transport::all_gather;
    const WireBytes& chosen = gather ? to_all : per_rank;
    total += static_cast<double>(chosen.total() - chosen.counts) / static_cast<double>(kTokens);
  }
  return total;
}

int64_t activation_bytes(const ModelConfig& config, int64_t rows) {
  const int64_t d = config.hidden_size;
  const int64_t q = config.num_attention_heads * config.head_dim, kv = config.num_key_value_heads * config.head_dim;
  const int64_t attention = 2 * d + 2 * q + 2 * kv;
  int64_t ffn = 2 * d + 2 * config.intermediate_size;
  if (config.moe) {
    // Shared gate and up; for each expert the row sent or received, grouped, and its result; gate and up of one expert.
    const MoeConfig& moe = *config.moe;
    ffn = 2 * d + 2 * moe.moe_intermediate_size * std::max<int64_t>(moe.num_shared_experts, 1) +
          moe.num_routed_experts() * (3 * d + 1);
  }
  return 4 * rows * std::max(attention, ffn);
}

}  // namespace cmoe
