#include "eval/score_texts.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>

#include "base/error.h"
#include "base/stage.h"
#include "comm/stop.h"
#include "eval/scoring_plan.h"

namespace cmoe {
namespace {

// Rows of logits at once where the most probable token is asked for.
constexpr size_t kLogitRows = 64;

// Runs one rank's groups; between them lives only the cache of a shared beginning.
class Scorer {
 public:
  Scorer(const Transformer& model, std::span<const std::vector<ScoredText>> questions, std::span<const QuestionShape> shapes,
         const ScoringLimits& limits, MoeObserver* observer, std::vector<std::vector<TextScore>>& scores)
      : model_(model), questions_(questions), shapes_(shapes), limits_(limits), observer_(observer), scores_(scores) {}

  void begin(const ScoringGroup& group) {
    caches_.clear();
    if (group.reads_shared) shared_ = std::make_unique<KvCache>(model_.config(), group.shared);
    for (const size_t q : group.questions) {
      KvCache& cache = caches_.try_emplace(q, model_.config(), shapes_[q].longest).first->second;
      if (group.shared > 0 && !group.reads_shared) cache.copy_from(*shared_, group.shared);
    }
    group_ = &group;
  }

  void step(const std::vector<ScoringPart>& parts) {
    std::vector<SequenceStep> steps;
    for (const ScoringPart& part : parts) {
      const bool shared = part.question == ScoringPart::kShared;
      const size_t owner = shared ? group_->questions[0] : part.question;
      KvCache& cache = shared ? *shared_ : caches_.at(owner);
      cache.set_length(part.begin);
      const ScoredText& text = questions_[owner][shapes_[owner].runs[part.run][0]];
      steps.push_back(
          {.tokens =
               std::span(text.tokens).subspan(static_cast<size_t>(part.begin), static_cast<size_t>(part.end - part.begin)),
           .cache = &cache});
    }
    const Tensor hidden = model_.forward(Batch(steps), observer_);
    if (parts.empty()) return;
    if (parts[0].question != ScoringPart::kShared) {
      score(parts, hidden);
    } else if (parts[0].end == group_->shared) {
      for (auto& [q, cache] : caches_) cache.copy_from(*shared_, group_->shared);
    }
  }

 private:
  void score(const std::vector<ScoringPart>& parts, const Tensor& hidden) {
    std::vector<int32_t> rows, targets;
    std::vector<TextScore*> owners;
    int32_t row = 0;
    for (const ScoringPart& part : parts) {
      for (const size_t t : shapes_[part.question].runs[part.run]) {
        const ScoredText& text = questions_[part.question][t];
        for (int64_t i = std::max(part.begin, text.score_from - 1); i < part.end; ++i) {
          rows.push_back(row + static_cast<int32_t>(i - part.begin));
          targets.push_back(text.tokens[static_cast<size_t>(i) + 1]);
          owners.push_back(&scores_[part.question][t]);
        }
      }
      row += static_cast<int32_t>(part.end - part.begin);
    }
    if (rows.empty()) return;
    Tensor scored(DType::f32, {static_cast<int64_t>(rows.size()), hidden.dim(1)});
    model_.backend().gather_rows(hidden, rows, scored);
    const std::vector<double> nll = model_.token_nll(scored, targets);
    for (size_t i = 0; i < rows.size(); ++i) {
      CMOE_CHECK(std::isfinite(nll[i]), "evaluate: token {} has the log likelihood {}; the model's logits are not finite",
                 targets[i], -nll[i]);
      owners[i]->log_likelihood -= nll[i];
    }
    if (limits_.greedy) find_greedy(hidden, rows, targets, owners);
  }

  void find_greedy(const Tensor& hidden, std::span<const int32_t> rows, std::span<const int32_t> targets,
                   std::span<TextScore* const> owners) {
    for (size_t first = 0; first < rows.size(); first += kLogitRows) {
      const size_t count = std::min(kLogitRows, rows.size() - first);
      Tensor block(DType::f32, {static_cast<int64_t>(count), hidden.dim(1)});
      model_.backend().gather_rows(hidden, rows.subspan(first, count), block);
      const Tensor logits = model_.logits(block);
      for (size_t i = 0; i < count; ++i) {
        const float* values = logits.row<float>(static_cast<int64_t>(i));
        if (std::max_element(values, values + logits.dim(1)) - values != targets[first + i]) owners[first + i]->greedy = false;
      }
    }
  }

  const Transformer& model_;
  std::span<const std::vector<ScoredText>> questions_;
  std::span<const QuestionShape> shapes_;
  ScoringLimits limits_;
  MoeObserver* observer_;
  std::vector<std::vector<TextScore>>& scores_;
  const ScoringGroup* group_ = nullptr;
  std::unique_ptr<KvCache> shared_;
  std::map<size_t, KvCache> caches_;
};

// Every rank has scored its own questions, and leaves the others' at zero.
void gather(const std::vector<ScoringPlan>& plans, Communicator& comm, std::vector<std::vector<TextScore>>& scores) {
  std::vector<double> mine;
  for (const ScoringGroup& group : plans[static_cast<size_t>(comm.rank())].groups) {
    for (const size_t q : group.questions) {
      for (const TextScore& score : scores[q]) {
        mine.push_back(score.log_likelihood);
        mine.push_back(score.greedy ? 1 : 0);
      }
    }
  }
  const std::vector<double> all = comm.all_gather_v<double>(mine);
  auto value = all.begin();
  for (const ScoringPlan& plan : plans) {
    for (const ScoringGroup& group : plan.groups) {
      for (const size_t q : group.questions) {
        for (TextScore& score : scores[q]) {
          score.log_likelihood = *value++;
          score.greedy = *value++ != 0;
        }
      }
    }
  }
}

}  // namespace

std::vector<std::vector<TextScore>> score_texts(const Transformer& model, std::span<const std::vector<ScoredText>> questions,
                                                const ScoringLimits& limits, Communicator& comm, MoeObserver* observer,
                                                const std::function<void(int64_t rows, int64_t all_rows)>& on_step) {
  std::vector<QuestionShape> shapes;
  std::vector<std::vector<TextScore>> scores;
  for (const std::vector<ScoredText>& question : questions) {
    shapes.push_back(shape_of(question));
    scores.emplace_back(question.size());
  }
  const std::vector<ScoringPlan> plans =
      plan_scoring(questions, shapes, limits.step_tokens, limits.cache_bytes / KvCache::bytes(model.config(), 1), comm.size());
  size_t steps = 0;
  int64_t all_rows = 0;
  for (const ScoringPlan& plan : plans) {
    steps = std::max(steps, plan.step_rows.size());
    for (const int64_t rows : plan.step_rows) all_rows += rows;
  }

  Scorer scorer(model, questions, shapes, limits, observer, scores);
  const std::vector<ScoringGroup>& groups = plans[static_cast<size_t>(comm.rank())].groups;
  size_t group = 0, step_of_group = 0;
  for (size_t step = 0; step < steps; ++step) {
    set_stage("evaluate");
    stop_together(comm, "evaluate");
    if (group < groups.size()) {
      if (step_of_group == 0) scorer.begin(groups[group]);
      scorer.step(groups[group].steps[step_of_group]);
      if (++step_of_group == groups[group].steps.size()) {
        ++group;
        step_of_group = 0;
      }
    } else {
      scorer.step({});  // the others may need this rank's experts
    }
    int64_t rows = 0;
    for (const ScoringPlan& plan : plans) rows += step < plan.step_rows.size() ? plan.step_rows[step] : 0;
    if (on_step) on_step(rows, all_rows);
  }
  gather(plans, comm, scores);
  return scores;
}

}  // namespace cmoe
