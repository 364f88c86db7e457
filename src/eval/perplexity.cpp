#include "eval/perplexity.h"

#include <cmath>

#include "base/error.h"
#include "base/stage.h"
#include "comm/stop.h"

namespace cmoe {
namespace {

// Mean -log p of the window's counted predictions.
double score_window(const Transformer& model, const Tensor& hidden, const ScoredWindow& window) {
  std::vector<int32_t> targets(window.tokens.begin() + 1, window.tokens.end());
  targets.push_back(-1);
  for (int64_t i = 0; i + 1 < window.score_from; ++i) targets[static_cast<size_t>(i)] = -1;
  double sum = 0;
  for (double value : model.token_nll(hidden, targets)) sum += value;
  return sum / static_cast<double>(static_cast<int64_t>(window.tokens.size()) - window.score_from);
}

}  // namespace

double PerplexityResult::mean() const {
  double sum = 0;
  int64_t count = 0;
  for (size_t i = 0; i < nll.size(); ++i) {
    sum += nll[i] * static_cast<double>(predictions[i]);
    count += predictions[i];
  }
  return sum / static_cast<double>(count);
}

double PerplexityResult::stderr_of_mean() const { return paired_difference(nll, std::vector<double>(nll.size(), 0.0)).second; }

double PerplexityResult::perplexity() const { return std::exp(mean()); }

PerplexityResult evaluate_perplexity(const Transformer& model, std::span<const ScoredWindow> windows, Communicator& comm,
                                     MoeObserver* observer, const std::function<void(int64_t tokens)>& on_step) {
  PerplexityResult result;
  for (const ScoredWindow& window : windows) {
    const auto size = static_cast<int64_t>(window.tokens.size());
    CMOE_CHECK(window.score_from >= 1 && window.score_from < size,
               "evaluate: a window of {} tokens predicts nothing from token {} on", size, window.score_from);
    result.predictions.push_back(size - window.score_from);
  }
  const size_t ranks = static_cast<size_t>(comm.size());
  std::vector<double> mine;
  for (size_t first = 0; first < windows.size(); first += ranks) {
    set_stage("evaluate");
    stop_together(comm, "evaluate");
    const size_t index = first + static_cast<size_t>(comm.rank());
    const bool has_window = index < windows.size();
    const std::span<const int32_t> tokens = has_window ? windows[index].tokens : std::span<const int32_t>();
    KvCache cache(model.config(), static_cast<int64_t>(tokens.size()), KvCache::Keep::one_layer);
    const SequenceStep step{.tokens = tokens, .cache = &cache};
    const Tensor hidden = model.forward(Batch(std::span(&step, 1)), observer);
    if (has_window) mine.push_back(score_window(model, hidden, windows[index]));
    int64_t scored = 0;
    for (size_t i = first; i < std::min(first + ranks, windows.size()); ++i)
      scored += static_cast<int64_t>(windows[i].tokens.size());
    if (on_step) on_step(scored);
  }
  std::vector<int64_t> counts;
  const std::vector<double> all = comm.all_gather_v<double>(mine, &counts);
  result.nll.resize(windows.size());
  size_t at = 0;
  for (size_t rank = 0; rank < ranks; ++rank) {
    for (size_t i = 0; i < static_cast<size_t>(counts[rank]); ++i) result.nll[i * ranks + rank] = all[at++];
  }
  return result;
}

std::pair<double, double> paired_difference(const std::vector<double>& a, const std::vector<double>& b) {
  const auto n = static_cast<double>(a.size());
  double sum = 0, square = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] - b[i];
  const double mean = sum / n;
  for (size_t i = 0; i < a.size(); ++i) square += std::pow(a[i] - b[i] - mean, 2);
  return {mean, a.size() > 1 ? std::sqrt(square / (n - 1) / n) : 0.0};
}

}  // namespace cmoe
