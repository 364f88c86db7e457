#include "eval/scoring_plan.h"

#include <algorithm>
#include <tuple>

#include "base/error.h"

namespace cmoe {
namespace {

// Consecutive questions form a family when they share at least this many tokens and half of the shorter shared beginning.
constexpr int64_t kLeastShared = 64;

int64_t common_prefix(const std::vector<int32_t>& a, const std::vector<int32_t>& b, int64_t limit) {
  int64_t length = 0;
  while (length < limit && a[static_cast<size_t>(length)] == b[static_cast<size_t>(length)]) ++length;
  return length;
}

int64_t read_tokens(const ScoredText& text) { return static_cast<int64_t>(text.tokens.size()) - 1; }

const ScoredText& text_of_run(const std::vector<ScoredText>& question, const QuestionShape& shape, size_t run) {
  return question[shape.runs[run][0]];
}

// Cuts parts into steps of at most `limit` rows. No question comes twice in a step: a part that is cut ends its step.
void add_steps(const std::vector<ScoringPart>& parts, int64_t limit, std::vector<std::vector<ScoringPart>>& steps) {
  std::vector<ScoringPart> step;
  int64_t rows = 0;
  const auto flush = [&] {
    if (!step.empty()) steps.push_back(std::move(step));
    step.clear();
    rows = 0;
  };
  for (ScoringPart part : parts) {
    while (part.begin < part.end) {
      const int64_t take = std::min(limit - rows, part.end - part.begin);
      step.push_back(part);
      step.back().end = part.begin + take;
      part.begin += take;
      rows += take;
      if (rows == limit) flush();
    }
  }
  flush();
}

// A group's steps: what all share, then each question's own beginning, then the first run of every question, the second, ...
void add_steps(std::span<const std::vector<ScoredText>> questions, std::span<const QuestionShape> shapes, int64_t step_tokens,
               ScoringGroup& group) {
  if (group.reads_shared) add_steps({{ScoringPart::kShared, 0, 0, group.shared}}, step_tokens, group.steps);
  // A question of one run has nothing to branch from.
  const auto branch = [&](size_t q) { return shapes[q].runs.size() > 1 ? shapes[q].shared : group.shared; };
  size_t most_runs = 0;
  std::vector<ScoringPart> parts;
  for (const size_t q : group.questions) {
    most_runs = std::max(most_runs, shapes[q].runs.size());
    parts.push_back({q, 0, group.shared, branch(q)});
  }
  add_steps(parts, step_tokens, group.steps);
  for (size_t run = 0; run < most_runs; ++run) {
    parts.clear();
    for (const size_t q : group.questions) {
      if (run < shapes[q].runs.size())
        parts.push_back({q, run, branch(q), read_tokens(text_of_run(questions[q], shapes[q], run))});
    }
    add_steps(parts, step_tokens, group.steps);
  }
}

ScoringPlan plan_rank(std::span<const std::vector<ScoredText>> questions, std::span<const QuestionShape> shapes,
                      std::span<const size_t> order, int64_t step_tokens, int64_t cache_tokens) {
  ScoringPlan plan;
  int64_t rows = 0, cached = 0;
  const auto add = [&](size_t q, int64_t shared, bool first_of_family) {
    const int64_t own = std::max<int64_t>(shapes[q].shared, 1) - std::min(shared, shapes[q].shared);
    const bool fits = !plan.groups.empty() && !first_of_family && plan.groups.back().shared == shared &&
                      rows + own <= step_tokens && cached + shapes[q].longest <= cache_tokens;
    if (!fits) {
      plan.groups.push_back({.shared = shared, .reads_shared = first_of_family && shared > 0});
      rows = cached = 0;
    }
    plan.groups.back().questions.push_back(q);
    rows += own;
    cached += shapes[q].longest;
  };
  const auto begins_alike = [&](size_t a, size_t b) {
    return common_prefix(questions[a][0].tokens, questions[b][0].tokens, std::min(shapes[a].shared, shapes[b].shared));
  };
  // Questions without a family first: they can run together.
  struct Family {
    std::span<const size_t> members;
    int64_t shared;
  };
  std::vector<Family> families;
  for (size_t first = 0; first < order.size();) {
    Family family{.members = order.subspan(first, 1), .shared = shapes[order[first]].shared};
    for (size_t next = first + 1; next < order.size(); ++next) {
      const int64_t alike = begins_alike(order[next - 1], order[next]);
      if (alike < kLeastShared || 2 * alike < std::min(shapes[order[next - 1]].shared, shapes[order[next]].shared)) break;
      family = {.members = order.subspan(first, next + 1 - first), .shared = std::min(family.shared, alike)};
    }
    if (family.members.size() == 1) {
      add(order[first], 0, false);
    } else {
      families.push_back(family);
    }
    first += family.members.size();
  }
  for (const Family& family : families) {
    for (size_t i = 0; i < family.members.size(); ++i) add(family.members[i], family.shared, i == 0);
  }
  for (ScoringGroup& group : plan.groups) {
    add_steps(questions, shapes, step_tokens, group);
    for (const std::vector<ScoringPart>& step : group.steps) {
      int64_t step_rows = 0;
      for (const ScoringPart& part : step) step_rows += part.end - part.begin;
      plan.step_rows.push_back(step_rows);
    }
  }
  return plan;
}

}  // namespace

QuestionShape shape_of(const std::vector<ScoredText>& question) {
  QuestionShape shape;
  for (size_t i = 0; i < question.size(); ++i) {
    const std::vector<int32_t>& tokens = question[i].tokens;
    const int64_t read = read_tokens(question[i]);
    CMOE_CHECK(question[i].score_from >= 1 && question[i].score_from <= read,
               "evaluate: a text of {} tokens predicts nothing from token {} on", tokens.size(), question[i].score_from);
    shape.longest = std::max(shape.longest, read);
    const int64_t before_scored = question[i].score_from - 1;
    const std::vector<int32_t>& first = question[0].tokens;
    shape.shared = i == 0 ? before_scored : common_prefix(first, tokens, std::min({shape.shared, before_scored, read}));
    const auto same = std::find_if(shape.runs.begin(), shape.runs.end(), [&](const std::vector<size_t>& run) {
      const ScoredText& other = question[run[0]];
      return read_tokens(other) == read && std::equal(tokens.begin(), tokens.end() - 1, other.tokens.begin());
    });
    if (same == shape.runs.end()) {
      shape.runs.push_back({i});
    } else {
      same->push_back(i);
    }
  }
  return shape;
}

std::vector<ScoringPlan> plan_scoring(std::span<const std::vector<ScoredText>> questions, std::span<const QuestionShape> shapes,
                                      int64_t step_tokens, int64_t cache_tokens, int ranks) {
  std::vector<size_t> order;
  std::vector<int64_t> work;  // of the questions in `order`, summed up
  for (size_t q = 0; q < questions.size(); ++q) {
    if (!questions[q].empty()) order.push_back(q);
  }
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return std::tie(questions[a][0].tokens, a) < std::tie(questions[b][0].tokens, b); });
  int64_t total = 0;
  for (const size_t q : order) {
    total += shapes[q].shared;
    for (size_t run = 0; run < shapes[q].runs.size(); ++run)
      total += read_tokens(text_of_run(questions[q], shapes[q], run)) - shapes[q].shared;
    work.push_back(total);
  }
  std::vector<ScoringPlan> plans;
  size_t begin = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    const int64_t until = total * (rank + 1) / ranks;
    const auto end = static_cast<size_t>(std::upper_bound(work.begin(), work.end(), until) - work.begin());
    plans.push_back(
        plan_rank(questions, shapes, std::span(order).subspan(begin, std::max(begin, end) - begin), step_tokens, cache_tokens));
    begin = std::max(begin, end);
  }
  return plans;
}

}  // namespace cmoe
