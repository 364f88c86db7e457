#include "analysis/expert_outputs.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "base/error.h"
#include "base/parallel.h"
#include "base/stage.h"
#include "comm/stop.h"

namespace cmoe {
namespace {

constexpr float kActive = 1e-3f;
constexpr int64_t kTokenBlock = 64;

// Where the sums of a window stand in one array, so that windows travel and add up as plain numbers. All counts are exact.
struct Layout {
  int64_t routed, experts;

  int64_t pairs() const { return experts * experts; }
  int64_t cosine() const { return 0; }
  int64_t angular() const { return pairs(); }
  int64_t rank_table() const { return 2 * pairs(); }
  int64_t norm() const { return rank_table() + routed * routed; }
  int64_t active() const { return norm() + experts; }
  int64_t taken() const { return active() + experts; }
  int64_t scalars() const { return taken() + routed; }
  enum Scalar {
    kTokens,
    kChosenCosine,
    kChosenPairs,
    kOtherCosine,
    kOtherPairs,
    kSpearman,
    kCompared,
    kOverlap,
    kOverlapChance,
    kExact,
    kExactChance,
    kEnergy,
    kEnergyBest,
    kScalars
  };
  int64_t size() const { return scalars() + kScalars; }
};

// Positions when sorted by falling value; equal values in their order.
void rank_values(std::span<const double> values, std::span<int32_t> order, std::span<int32_t> rank) {
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return values[static_cast<size_t>(a)] > values[static_cast<size_t>(b)]; });
  for (size_t i = 0; i < order.size(); ++i) rank[static_cast<size_t>(order[i])] = static_cast<int32_t>(i);
}

double one_over_choose(int64_t n, int64_t k) {
  double value = 1;
  for (int64_t i = 1; i <= k; ++i) value *= static_cast<double>(i) / static_cast<double>(n - k + i);
  return value;
}

// Adds one token's measures to `sum`.
class TokenMeasures {
 public:
  explicit TokenMeasures(Layout layout)
      : layout_(layout),
        norms_(static_cast<size_t>(layout.experts)),
        scores_(static_cast<size_t>(layout.routed)),
        order_(scores_.size()),
        norm_rank_(scores_.size()),
        score_rank_(scores_.size()),
        taken_(scores_.size()) {}

  void add(int64_t token, std::span<const Tensor> outputs, const Tensor& scores, std::span<const int32_t> chosen,
           std::span<double> sum) {
    const auto at = [&](int64_t index) -> double& { return sum[static_cast<size_t>(index)]; };
    const auto scalar = [&](Layout::Scalar which) -> double& { return at(layout_.scalars() + which); };
    const auto output = [&](int64_t e) {
      const Tensor& rows = outputs[static_cast<size_t>(e)];
      return std::span<const float>(rows.row<float>(token), static_cast<size_t>(rows.dim(1)));
    };
    const int64_t routed = layout_.routed, experts = layout_.experts;
    std::fill(taken_.begin(), taken_.end(), 0);
    for (const int32_t e : chosen) {
      taken_[static_cast<size_t>(e)] = 1;
      at(layout_.taken() + e) += 1;
    }
    for (int64_t e = 0; e < experts; ++e) {
      norms_[static_cast<size_t>(e)] = std::sqrt(dot(output(e), output(e)));
      at(layout_.norm() + e) += norms_[static_cast<size_t>(e)];
    }
    for (int64_t i = 1; i < experts; ++i) {
      for (int64_t j = 0; j < i; ++j) {
        const double lengths = norms_[static_cast<size_t>(i)] * norms_[static_cast<size_t>(j)];
        const double cosine = lengths > 0 ? std::clamp(dot(output(i), output(j)) / lengths, -1.0, 1.0) : 0;
        at(layout_.cosine() + i * experts + j) += cosine;
        at(layout_.angular() + i * experts + j) += 1 - std::acos(cosine) / std::numbers::pi;
        if (i >= routed) continue;
        const bool both = taken_[static_cast<size_t>(i)] && taken_[static_cast<size_t>(j)];
        scalar(both ? Layout::kChosenCosine : Layout::kOtherCosine) += cosine;
        scalar(both ? Layout::kChosenPairs : Layout::kOtherPairs) += 1;
      }
    }
    scalar(Layout::kTokens) += 1;
    add_ranks(token, scores, static_cast<int64_t>(chosen.size()), sum);
  }

 private:
  void add_ranks(int64_t token, const Tensor& scores, int64_t k, std::span<double> sum) {
    const int64_t routed = layout_.routed;
    const auto scalar = [&](Layout::Scalar which) -> double& { return sum[static_cast<size_t>(layout_.scalars() + which)]; };
    for (int64_t e = 0; e < routed; ++e) scores_[static_cast<size_t>(e)] = scores.row<float>(token)[e];
    const std::span<const double> norms(norms_.data(), static_cast<size_t>(routed));
    rank_values(scores_, order_, score_rank_);
    rank_values(norms, order_, norm_rank_);
    double squares = 0, energy = 0, taken_energy = 0, best_energy = 0;
    int64_t overlap = 0;
    for (size_t e = 0; e < norms.size(); ++e) {
      sum[static_cast<size_t>(layout_.rank_table() + norm_rank_[e] * routed + score_rank_[e])] += 1;
      squares += std::pow(norm_rank_[e] - score_rank_[e], 2);
      const double square = norms[e] * norms[e];
      energy += square;
      if (taken_[e]) taken_energy += square;
      if (norm_rank_[e] < k) best_energy += square;
      overlap += taken_[e] && norm_rank_[e] < k;
    }
    const auto n = static_cast<double>(routed);
    scalar(Layout::kSpearman) += routed > 1 ? 1 - 6 * squares / (n * (n * n - 1)) : 1;
    scalar(Layout::kEnergy) += energy > 0 ? taken_energy / energy : 1;
    scalar(Layout::kEnergyBest) += energy > 0 ? best_energy / energy : 1;
    if (k == 0 || k == routed) return;
    scalar(Layout::kCompared) += 1;
    scalar(Layout::kOverlap) += static_cast<double>(overlap) / static_cast<double>(k);
    scalar(Layout::kOverlapChance) += static_cast<double>(k) / n;
    scalar(Layout::kExact) += overlap == k ? 1 : 0;
    scalar(Layout::kExactChance) += one_over_choose(routed, k);
  }

  Layout layout_;
  std::vector<double> norms_, scores_;
  std::vector<int32_t> order_, norm_rank_, score_rank_;
  std::vector<char> taken_;
};

// |silu(W_gate x)| above kActive.
int64_t count_active(const Backend& backend, const GatedFfn& ffn, const Tensor& input) {
  Tensor gate(DType::f32, {input.dim(0), ffn.neurons()});
  backend.linear(input, ffn.gate, gate);
  int64_t active = 0;
  for (const float z : gate.span<float>()) active += std::abs(z / (1 + std::exp(-z))) > kActive;
  return active;
}

// The sums of one window. Tokens are added in blocks, each from zero, so that threads do not matter.
std::vector<double> measure(const Backend& backend, const MoeLayer& layer, const Layout& layout, const Tensor& input,
                            const Tensor& scores, const Routing& routing) {
  std::vector<Tensor> outputs;
  std::vector<double> sum(static_cast<size_t>(layout.size()), 0.0);
  for (int64_t e = 0; e < layout.experts; ++e) {
    const GatedFfn& ffn = e < layout.routed ? layer.experts[static_cast<size_t>(e)] : *layer.shared;
    outputs.emplace_back(DType::f32, input.shape());
    gated_ffn(backend, ffn, input, outputs.back());
    sum[static_cast<size_t>(layout.active() + e)] =
        static_cast<double>(count_active(backend, ffn, input)) / static_cast<double>(ffn.neurons());
  }
  const int64_t blocks = (input.dim(0) + kTokenBlock - 1) / kTokenBlock;
  std::vector<std::vector<double>> of_block(static_cast<size_t>(blocks));
  parallel_for(blocks, 1, [&](int64_t begin, int64_t end) {
    TokenMeasures measures(layout);
    for (int64_t block = begin; block < end; ++block) {
      std::vector<double>& mine = of_block[static_cast<size_t>(block)];
      mine.assign(static_cast<size_t>(layout.size()), 0.0);
      for (int64_t t = block * kTokenBlock; t < std::min((block + 1) * kTokenBlock, input.dim(0)); ++t)
        measures.add(t, outputs, scores, routing.experts(t), mine);
    }
  });
  for (const std::vector<double>& block : of_block) {
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += block[i];
  }
  return sum;
}

ExpertOutputs to_outputs(const Layout& layout, std::span<const double> sum) {
  const auto at = [&](int64_t index) { return sum[static_cast<size_t>(index)]; };
  const auto scalar = [&](Layout::Scalar which) { return at(layout.scalars() + which); };
  const auto ratio = [](double value, double count) { return count > 0 ? value / count : 0; };
  const double tokens = scalar(Layout::kTokens);
  ExpertOutputs made{.tokens = static_cast<int64_t>(tokens),
                     .routed = layout.routed,
                     .experts = layout.experts,
                     .cosine = SquareMatrix(layout.experts),
                     .angular = SquareMatrix(layout.experts),
                     .chosen_cosine = ratio(scalar(Layout::kChosenCosine), scalar(Layout::kChosenPairs)),
                     .other_cosine = ratio(scalar(Layout::kOtherCosine), scalar(Layout::kOtherPairs)),
                     .rank_table = SquareMatrix(layout.routed),
                     .spearman = ratio(scalar(Layout::kSpearman), tokens),
                     .overlap = ratio(scalar(Layout::kOverlap), scalar(Layout::kCompared)),
                     .overlap_by_chance = ratio(scalar(Layout::kOverlapChance), scalar(Layout::kCompared)),
                     .exact = ratio(scalar(Layout::kExact), scalar(Layout::kCompared)),
                     .exact_by_chance = ratio(scalar(Layout::kExactChance), scalar(Layout::kCompared)),
                     .energy = ratio(scalar(Layout::kEnergy), tokens),
                     .energy_best = ratio(scalar(Layout::kEnergyBest), tokens)};
  for (int64_t i = 0; i < layout.experts; ++i) {
    made.norm.push_back(ratio(at(layout.norm() + i), tokens));
    made.active_share.push_back(ratio(at(layout.active() + i), tokens));
    made.cosine.at(i, i) = made.angular.at(i, i) = 1;
    for (int64_t j = 0; j < i; ++j) {
      made.cosine.at(i, j) = made.cosine.at(j, i) = ratio(at(layout.cosine() + i * layout.experts + j), tokens);
      made.angular.at(i, j) = made.angular.at(j, i) = ratio(at(layout.angular() + i * layout.experts + j), tokens);
    }
  }
  for (int64_t i = 0; i < layout.routed * layout.routed; ++i)
    made.rank_table.values[static_cast<size_t>(i)] = at(layout.rank_table() + i);
  for (int64_t e = 0; e < layout.routed; ++e) made.tokens_per_expert.push_back(static_cast<int64_t>(at(layout.taken() + e)));
  return made;
}

// One text on its way through the layers.
struct Text {
  std::span<const int32_t> tokens;
  std::unique_ptr<KvCache> cache;
  std::unique_ptr<Batch> batch;
  Tensor x;

  Text(const Transformer& model, std::span<const int32_t> ids)
      : tokens(ids),
        cache(std::make_unique<KvCache>(model.config(), static_cast<int64_t>(ids.size()), KvCache::Keep::one_layer)) {
    const SequenceStep step{.tokens = ids, .cache = cache.get()};
    batch = std::make_unique<Batch>(std::span(&step, 1));
    x = model.embed(*batch);
  }
};

}  // namespace

OutputAnalysis analyze_expert_outputs(const Checkpoint& checkpoint, std::shared_ptr<const Backend> backend, DType dtype,
                                      std::span<const std::span<const int32_t>> windows, std::span<const int32_t> prompt,
                                      Communicator& comm, const std::function<void()>& on_layer) {
  const ModelConfig& config = checkpoint.config;
  CMOE_CHECK(config.moe && config.moe->num_routed_experts() > 0, "{}: has no routed experts; analyze takes a carved model",
             checkpoint.path.string());
  const Layout layout{.routed = config.moe->num_routed_experts(),
                      .experts = config.moe->num_routed_experts() + (config.moe->num_shared_experts > 0)};
  Transformer model(checkpoint, backend, dtype, Transformer::LoadFfn::no);
  std::vector<Text> texts;
  for (size_t i = static_cast<size_t>(comm.rank()); i < windows.size(); i += static_cast<size_t>(comm.size()))
    texts.emplace_back(model, windows[i]);
  // The prompt runs on every rank: it is short.
  if (!prompt.empty()) texts.emplace_back(model, prompt);

  OutputAnalysis analysis;
  for (int64_t l = 0; l < config.num_hidden_layers; ++l) {
    set_stage("analyze", l);
    stop_together(comm, "analyze");
    DecoderLayer& decoder = model.layers()[static_cast<size_t>(l)];
    decoder.ffn = read_ffn(checkpoint, *backend, dtype, l);
    const MoeLayer& layer = std::get<MoeLayer>(decoder.ffn);
    std::vector<double> mine;
    for (Text& text : texts) {
      model.add_attention(l, *text.batch, text.x);
      const Tensor input = model.ffn_input(l, text.x);
      const Tensor scores = router_scores(*backend, layer.router, input);
      const Routing routing = select_experts(layer.router, scores);
      if (!prompt.empty() && &text == &texts.back()) {
        std::vector<std::vector<int32_t>>& map = analysis.prompt.emplace_back();
        for (int64_t t = 0; t < routing.tokens(); ++t) map.emplace_back(routing.experts(t).begin(), routing.experts(t).end());
      } else {
        const std::vector<double> sum = measure(*backend, layer, layout, input, scores, routing);
        mine.insert(mine.end(), sum.begin(), sum.end());
      }
      model.add_ffn(l, input, text.x);
    }
    decoder.ffn = GatedFfn{};
    // Windows are added in their order: window i is the (i / ranks)-th of rank i mod ranks.
    std::vector<int64_t> counts;
    const std::vector<double> all = comm.all_gather_v<double>(mine, &counts);
    std::vector<int64_t> begin(counts.size(), 0);
    std::partial_sum(counts.begin(), counts.end() - 1, begin.begin() + 1);
    std::vector<double> sum(static_cast<size_t>(layout.size()), 0.0);
    for (size_t i = 0; i < windows.size(); ++i) {
      const size_t rank = i % static_cast<size_t>(comm.size()), place = i / static_cast<size_t>(comm.size());
      const double* window = all.data() + begin[rank] + static_cast<int64_t>(place) * layout.size();
      for (size_t k = 0; k < sum.size(); ++k) sum[k] += window[k];
    }
    analysis.layers.push_back(to_outputs(layout, sum));
    if (on_layer) on_layer();
  }
  return analysis;
}

}  // namespace cmoe
