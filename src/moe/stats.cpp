#include "moe/stats.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/error.h"

namespace cmoe {

namespace {

double max_over_mean(const std::vector<int64_t>& counts) {
  const int64_t sum = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  if (sum == 0) return 1.0;
  return static_cast<double>(*std::max_element(counts.begin(), counts.end())) * static_cast<double>(counts.size()) /
         static_cast<double>(sum);
}

int64_t pairs(const LayerStats& layer) {
  return std::accumulate(layer.tokens_per_expert.begin(), layer.tokens_per_expert.end(), int64_t{0});
}

// The integers of a layer, in one order for packing and unpacking.
template <class Layer, class Visit>
void visit_sums(Layer& layer, Visit visit) {
  for (auto& count : layer.tokens_per_expert) visit(count);
  for (auto& count : layer.tokens_per_rank) visit(count);
  for (auto* count : {&layer.tokens, &layer.sent.counts, &layer.sent.ids, &layer.sent.rows, &layer.sent.partials})
    visit(*count);
}

template <class Layer, class Visit>
void visit_seconds(Layer& layer, Visit visit) {
  for (auto* seconds :
       {&layer.route_seconds, &layer.dispatch_seconds, &layer.experts_seconds, &layer.combine_seconds, &layer.wait_seconds}) {
    visit(*seconds);
  }
}

LayerStats total_of(const std::vector<LayerStats>& layers) {
  LayerStats total;
  for (const LayerStats& layer : layers) {
    total.tokens += layer.tokens;
    total.calls += layer.calls;
    total.all_gather_calls += layer.all_gather_calls;
    total.sent += layer.sent;
    total.tokens_per_rank.resize(std::max(total.tokens_per_rank.size(), layer.tokens_per_rank.size()), 0);
    for (size_t r = 0; r < layer.tokens_per_rank.size(); ++r) total.tokens_per_rank[r] += layer.tokens_per_rank[r];
    total.route_seconds += layer.route_seconds;
    total.dispatch_seconds += layer.dispatch_seconds;
    total.experts_seconds += layer.experts_seconds;
    total.combine_seconds += layer.combine_seconds;
    total.wait_seconds += layer.wait_seconds;
    total.slowest_rank_seconds += layer.slowest_rank_seconds;
  }
  return total;
}

nlohmann::json json_of(const LayerStats& layer) {
  return {{"tokens", layer.tokens},
          {"calls", layer.calls},
          {"all_gather_calls", layer.all_gather_calls},
          {"tokens_per_rank", layer.tokens_per_rank},
          {"rank_max_over_mean", layer.rank_max_over_mean()},
          {"bytes",
           {{"counts", layer.sent.counts},
            {"ids", layer.sent.ids},
            {"rows", layer.sent.rows},
            {"partials", layer.sent.partials},
            {"total", layer.sent.total()}}},
          {"seconds",
           {{"route", layer.route_seconds},
            {"dispatch", layer.dispatch_seconds},
            {"experts", layer.experts_seconds},
            {"combine", layer.combine_seconds},
            {"wait", layer.wait_seconds},
            {"slowest_rank", layer.slowest_rank_seconds}}}};
}

std::string line_of(const std::string& name, const LayerStats& layer, int64_t layer_pairs, const std::string& expert_balance) {
  const double per_token = layer.tokens > 0 ? static_cast<double>(layer_pairs) / static_cast<double>(layer.tokens) : 0.0;
  return fmt::format("{:>5} {:>9} {:>8.2f} {:>8} {:>8.2f} {:>9.2f} {:>8.1f} {:>8.1f} {:>8.1f} {:>8.1f} {:>8.1f}\n", name,
                     layer.tokens, per_token, expert_balance, layer.rank_max_over_mean(),
                     static_cast<double>(layer.sent.total()) / 1e6, layer.route_seconds * 1e3, layer.dispatch_seconds * 1e3,
                     layer.experts_seconds * 1e3, layer.combine_seconds * 1e3, layer.wait_seconds * 1e3);
}

}  // namespace

void LayerStats::add(const Routing& routing, const ExpertPlacement& placement, int home_rank) {
  tokens_per_expert.resize(static_cast<size_t>(placement.num_experts()), 0);
  tokens_per_rank.resize(static_cast<size_t>(placement.ranks()), 0);
  tokens += routing.tokens();
  for (int32_t e : routing.expert_idx) {
    ++tokens_per_expert[static_cast<size_t>(e)];
    ++tokens_per_rank[static_cast<size_t>(placement.rank_for(GlobalExpert{e}, home_rank))];
  }
}

void LayerStats::add(const ExchangeReport& report) {
  ++calls;
  all_gather_calls += report.transport == Transport::all_gather ? 1 : 0;
  sent += report.sent;
  dispatch_seconds += report.dispatch_seconds;
  combine_seconds += report.combine_seconds;
  wait_seconds += report.wait_seconds;
}

double LayerStats::expert_max_over_mean() const { return max_over_mean(tokens_per_expert); }
double LayerStats::rank_max_over_mean() const { return max_over_mean(tokens_per_rank); }

MoeStats MoeStats::merged(Communicator& group) const {
  // Sizes first, so that ranks that differ find out before a sum of unequal lengths.
  std::vector<int64_t> sizes{static_cast<int64_t>(layers.size())};
  for (const LayerStats& layer : layers) {
    sizes.push_back(static_cast<int64_t>(layer.tokens_per_expert.size()));
    sizes.push_back(static_cast<int64_t>(layer.tokens_per_rank.size()));
  }
  std::vector<int64_t> lengths;
  const std::vector<int64_t> all = group.all_gather_v(std::span<const int64_t>(sizes), &lengths);
  for (size_t r = 0, begin = 0; r < lengths.size(); begin += static_cast<size_t>(lengths[r++])) {
    const bool same = static_cast<size_t>(lengths[r]) == sizes.size() &&
                      std::equal(sizes.begin(), sizes.end(), all.begin() + static_cast<int64_t>(begin));
    CMOE_CHECK(same, "MoE statistics: rank {} and rank {} counted different layers or experts; expected one model on all ranks",
               group.rank(), r);
  }

  MoeStats result = *this;
  std::vector<int64_t> sums;
  std::vector<double> seconds, slowest;
  for (const LayerStats& layer : layers) {
    visit_sums(layer, [&](const int64_t& count) { sums.push_back(count); });
    visit_seconds(layer, [&](const double& value) { seconds.push_back(value); });
    slowest.push_back(layer.seconds());
  }
  group.all_reduce_sum(sums);
  group.all_reduce_max(std::span(slowest));
  const std::vector<double> all_seconds = group.all_gather_v(std::span<const double>(seconds));
  size_t next_sum = 0, next_seconds = 0;
  for (size_t l = 0; l < result.layers.size(); ++l) {
    visit_sums(result.layers[l], [&](int64_t& count) { count = sums[next_sum++]; });
    visit_seconds(result.layers[l], [&](double& value) {
      value = 0;
      for (size_t i = next_seconds; i < all_seconds.size(); i += seconds.size()) value += all_seconds[i] / group.size();
      ++next_seconds;
    });
    result.layers[l].slowest_rank_seconds = slowest[l];
  }
  return result;
}

nlohmann::json MoeStats::to_json() const {
  nlohmann::json result{{"layers", nlohmann::json::array()}, {"total", json_of(total_of(layers))}};
  for (size_t l = 0; l < layers.size(); ++l) {
    nlohmann::json layer = json_of(layers[l]);
    layer["layer"] = l;
    layer["tokens_per_expert"] = layers[l].tokens_per_expert;
    layer["expert_max_over_mean"] = layers[l].expert_max_over_mean();
    result["layers"].push_back(std::move(layer));
  }
  return result;
}

std::string MoeStats::table() const {
  std::string text = fmt::format("{:>5} {:>9} {:>8} {:>8} {:>8} {:>9} {:>8} {:>8} {:>8} {:>8} {:>8}\n", "layer", "tokens",
                                 "experts/", "expert", "rank", "MB", "route", "dispatch", "experts", "combine", "wait");
  text += fmt::format("{:>5} {:>9} {:>8} {:>8} {:>8} {:>9} {:>8} {:>8} {:>8} {:>8} {:>8}\n", "", "", "token", "max/mean",
                      "max/mean", "sent", "ms", "ms", "ms", "ms", "ms");
  int64_t all_pairs = 0;
  for (size_t l = 0; l < layers.size(); ++l) {
    all_pairs += pairs(layers[l]);
    text += line_of(fmt::format("{}", l), layers[l], pairs(layers[l]), fmt::format("{:.2f}", layers[l].expert_max_over_mean()));
  }
  return text + line_of("all", total_of(layers), all_pairs, "");
}

}  // namespace cmoe
