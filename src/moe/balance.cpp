// ExpertPlacement::balanced: the search for even rank loads.

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "moe/placement.h"

namespace cmoe {

namespace {

/// How uneven a set of rank loads is: the largest first, then the sum of squares, which still falls while several ranks share
/// the largest load.
struct Unevenness {
  double largest = 0;
  double squares = 0;

  /// Lower by more than rounding, so that a search over equal alternatives ends.
  bool better_than(const Unevenness& other) const {
    const double slack = 1e-12;
    if (largest < other.largest * (1 - slack)) return true;
    if (largest > other.largest * (1 + slack)) return false;
    return squares < other.squares * (1 - slack);
  }
};

class Balancer {
 public:
  Balancer(std::span<const double> load, int ranks)
      : load_(load),
        ranks_(ranks),
        held_(load.size() * static_cast<size_t>(ranks), false),
        total_(static_cast<size_t>(ranks), 0.0) {}

  /// Heaviest copy first, to the rank with the least load (then the fewest experts) that does not hold the expert yet.
  /// @param copies   [num_experts] 1 to ranks
  void place_longest_first(const std::vector<int>& copies) {
    std::vector<size_t> order(load_.size());
    std::iota(order.begin(), order.end(), size_t{0});
    const auto per_copy = [&](size_t e) { return load_[e] / copies[e]; };
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return per_copy(a) > per_copy(b); });
    std::vector<int> count(total_.size(), 0);
    for (size_t e : order) {
      for (int copy = 0; copy < copies[e]; ++copy) {
        size_t best = total_.size();
        for (size_t r = 0; r < total_.size(); ++r) {
          if (holds(e, r)) continue;
          if (best == total_.size() || total_[r] < total_[best] || (total_[r] == total_[best] && count[r] < count[best]))
            best = r;
        }
        set(e, best, true);
        total_[best] += per_copy(e);
        ++count[best];
      }
    }
    // Shares of copies are whole home ranks, not equal parts.
    std::fill(total_.begin(), total_.end(), 0.0);
    for (size_t e : order) add_expert(e, 1, total_);
  }

  /// Moves a copy to another rank, or swaps copies of two experts, as long as that helps: the best such step each time.
  void improve() {
    const int kMaxSteps = 1000;  // each step is a strict improvement; the limit only bounds the time
    for (int step = 0; step < kMaxSteps && improve_once(); ++step) {
    }
  }

  Unevenness unevenness() const { return unevenness(total_); }

  std::vector<std::vector<int>> ranks_of_expert() const {
    std::vector<std::vector<int>> result(load_.size());
    for (size_t e = 0; e < load_.size(); ++e) {
      for (int r = 0; r < ranks_; ++r) {
        if (holds(e, static_cast<size_t>(r))) result[e].push_back(r);
      }
    }
    return result;
  }

 private:
  struct Change {
    size_t expert;
    size_t rank;
    bool holds;
  };

  bool holds(size_t expert, size_t rank) const { return held_[expert * total_.size() + rank]; }
  void set(size_t expert, size_t rank, bool value) { held_[expert * total_.size() + rank] = value; }

  static Unevenness unevenness(const std::vector<double>& total) {
    Unevenness result;
    for (double t : total) {
      result.largest = std::max(result.largest, t);
      result.squares += t * t;
    }
    return result;
  }

  // total += sign * what each rank serves of this expert, by the rule of ExpertPlacement::rank_for.
  void add_expert(size_t expert, double sign, std::vector<double>& total) const {
    std::vector<size_t>& copies = copies_;
    copies.clear();
    for (size_t r = 0; r < total.size(); ++r) {
      if (holds(expert, r)) copies.push_back(r);
    }
    const double share = sign * load_[expert] / static_cast<double>(total.size());
    size_t turn = expert;
    for (size_t home = 0; home < total.size(); ++home) {
      total[holds(expert, home) ? home : copies[turn++ % copies.size()]] += share;
    }
  }

  void change(std::span<const Change> changes, std::vector<double>& total) {
    for (size_t i = 0; i < changes.size(); ++i) {
      const bool first = i == 0 || changes[i].expert != changes[i - 1].expert;
      if (first) add_expert(changes[i].expert, -1, total);
      set(changes[i].expert, changes[i].rank, changes[i].holds);
      const bool last = i + 1 == changes.size() || changes[i].expert != changes[i + 1].expert;
      if (last) add_expert(changes[i].expert, 1, total);
    }
  }

  // What the loads would be; changes of one expert stand together.
  Unevenness changed(std::initializer_list<Change> changes) {
    trial_ = total_;
    change(changes, trial_);
    for (const Change& c : changes) set(c.expert, c.rank, !c.holds);
    return unevenness(trial_);
  }

  void apply(std::initializer_list<Change> changes) { change(changes, total_); }

  bool improve_once() {
    const Unevenness now = unevenness(total_);
    Unevenness best = now;
    std::vector<Change> step;
    // Only a step that takes from the most loaded rank can lower the largest load.
    const size_t from = static_cast<size_t>(std::max_element(total_.begin(), total_.end()) - total_.begin());
    for (size_t e = 0; e < load_.size(); ++e) {
      if (!holds(e, from)) continue;
      for (size_t to = 0; to < total_.size(); ++to) {
        if (holds(e, to)) continue;
        const Unevenness moved = changed({{e, from, false}, {e, to, true}});
        if (moved.better_than(best)) best = moved, step = {{e, from, false}, {e, to, true}};
        for (size_t f = 0; f < load_.size(); ++f) {
          if (!holds(f, to) || holds(f, from)) continue;
          const Unevenness swapped = changed({{e, from, false}, {e, to, true}, {f, to, false}, {f, from, true}});
          if (swapped.better_than(best)) {
            best = swapped;
            step = {{e, from, false}, {e, to, true}, {f, to, false}, {f, from, true}};
          }
        }
      }
    }
    if (step.empty()) return false;
    change(step, total_);
    return true;
  }

  std::span<const double> load_;
  int ranks_;
  std::vector<bool> held_;     // [experts, ranks]
  std::vector<double> total_;  // [ranks]
  std::vector<double> trial_;
  mutable std::vector<size_t> copies_;
};

}  // namespace

ExpertPlacement ExpertPlacement::balanced(std::span<const double> load, int ranks, int redundant_copies) {
  CMOE_CHECK(ranks >= 1, "expert placement: {} ranks; expected at least 1", ranks);
  CMOE_CHECK(redundant_copies >= 0, "expert placement: {} redundant experts; expected none or more", redundant_copies);
  for (size_t e = 0; e < load.size(); ++e) {
    CMOE_CHECK(std::isfinite(load[e]) && load[e] >= 0,
               "expert placement: the load of expert {} is {}; expected a finite number >= 0", e, load[e]);
  }
  std::vector<int> copies(load.size(), 1);
  Balancer best(load, ranks);
  best.place_longest_first(copies);
  best.improve();
  for (int i = 0; i < redundant_copies; ++i) {
    // The expert with the heaviest copies gets one more; one that every rank holds needs none.
    size_t hottest = load.size();
    for (size_t e = 0; e < load.size(); ++e) {
      if (copies[e] == ranks) continue;
      if (hottest == load.size() || load[e] / copies[e] > load[hottest] / copies[hottest]) hottest = e;
    }
    if (hottest == load.size()) break;
    ++copies[hottest];
    Balancer trial(load, ranks);
    trial.place_longest_first(copies);
    trial.improve();
    if (trial.unevenness().better_than(best.unevenness())) best = trial;
  }
  return of(best.ranks_of_expert(), ranks);
}

}  // namespace cmoe
