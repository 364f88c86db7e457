#include "carve/smallest_labels.h"

#include <algorithm>
#include <bit>
#include <vector>

namespace cmoe {
namespace {

// Exchanges along tight pairs. Items are fixed in order; item i may take the smaller cluster j if a chain of later items can
// move j -> ... -> label[i], each to a cluster it is tight with.
class TightExchange {
 public:
  TightExchange(std::span<const int64_t> cost, int64_t clusters, std::span<const int64_t> item_price,
                std::span<const int64_t> cluster_price, std::span<int32_t> label)
      : r_(clusters), words_((clusters + 63) / 64), label_(label) {
    movers_.resize(static_cast<size_t>(r_ * r_));
    live_.assign(static_cast<size_t>(r_ * r_), 0);
    into_.assign(static_cast<size_t>(r_ * words_), 0);
    const auto n = static_cast<int64_t>(label.size());
    tight_begin_.reserve(static_cast<size_t>(n + 1));
    tight_begin_.push_back(0);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t* row = cost.data() + i * r_;
      for (int64_t j = 0; j < r_; ++j) {
        if (row[j] == item_price[i] + cluster_price[j]) tight_.push_back(static_cast<int32_t>(j));
      }
      tight_begin_.push_back(static_cast<int64_t>(tight_.size()));
    }
    for (int64_t i = 0; i < n; ++i) enter(i);
  }

  void run() {
    const auto n = static_cast<int64_t>(label_.size());
    for (int64_t i = 0; i < n; ++i) {
      leave(i);  // from here on item i is fixed: no chain may use it
      fixed_ = i;
      const int32_t now = label_[i];
      if (tight_[static_cast<size_t>(tight_begin_[i])] >= now) continue;
      search_backwards(now);
      for (int32_t j : tight_of(i)) {
        if (j >= now) break;
        if (!reached(j)) continue;
        label_[i] = j;
        for (int32_t a = j; a != now; a = next_[a]) shift(a, next_[a]);
        break;
      }
    }
  }

 private:
  std::span<const int32_t> tight_of(int64_t i) const {
    return std::span(tight_).subspan(static_cast<size_t>(tight_begin_[i]),
                                     static_cast<size_t>(tight_begin_[i + 1] - tight_begin_[i]));
  }
  bool reached(int32_t j) const { return seen_[static_cast<size_t>(j / 64)] >> (j % 64) & 1; }

  // Item i becomes a mover out of its cluster.
  void enter(int64_t i) {
    const int64_t a = label_[i];
    for (int32_t b : tight_of(i)) {
      if (b == a) continue;
      std::vector<int32_t>& movers = movers_[static_cast<size_t>(a * r_ + b)];
      int64_t& live = live_[static_cast<size_t>(a * r_ + b)];
      if (static_cast<int64_t>(movers.size()) > 2 * live + 64) compact(movers, a);
      movers.push_back(static_cast<int32_t>(i));
      if (live++ == 0) into_[static_cast<size_t>(b * words_ + a / 64)] |= uint64_t{1} << (a % 64);
    }
  }

  void leave(int64_t i) {
    const int64_t a = label_[i];
    for (int32_t b : tight_of(i)) {
      if (b == a) continue;
      if (--live_[static_cast<size_t>(a * r_ + b)] == 0)
        into_[static_cast<size_t>(b * words_ + a / 64)] &= ~(uint64_t{1} << (a % 64));
    }
  }

  // Drops entries of items that have left or are fixed, and repeats; keeps the lists within a factor of the live items.
  void compact(std::vector<int32_t>& movers, int64_t a) const {
    std::erase_if(movers, [&](int32_t i) { return i <= fixed_ || label_[i] != a; });
    std::sort(movers.begin(), movers.end());
    movers.erase(std::unique(movers.begin(), movers.end()), movers.end());
  }

  // seen_ = the clusters from which a chain of movers leads to `goal`; next_ = the first step of a shortest one.
  void search_backwards(int32_t goal) {
    seen_.assign(static_cast<size_t>(words_), 0);
    next_.resize(static_cast<size_t>(r_));
    queue_.assign(1, goal);
    seen_[static_cast<size_t>(goal / 64)] |= uint64_t{1} << (goal % 64);
    for (size_t head = 0; head < queue_.size(); ++head) {
      const int32_t b = queue_[head];
      for (int64_t w = 0; w < words_; ++w) {
        uint64_t fresh = into_[static_cast<size_t>(b * words_ + w)] & ~seen_[static_cast<size_t>(w)];
        seen_[static_cast<size_t>(w)] |= fresh;
        for (; fresh; fresh &= fresh - 1) {
          const auto a = static_cast<int32_t>(w * 64 + std::countr_zero(fresh));
          next_[static_cast<size_t>(a)] = b;
          queue_.push_back(a);
        }
      }
    }
  }

  // Moves one item from a to b; there is one, because live_[a, b] > 0.
  void shift(int32_t a, int32_t b) {
    std::vector<int32_t>& movers = movers_[static_cast<size_t>(a * r_ + b)];
    while (movers.back() <= fixed_ || label_[movers.back()] != a) movers.pop_back();
    const int32_t i = movers.back();
    movers.pop_back();
    leave(i);
    label_[i] = b;
    enter(i);
  }

  int64_t r_, words_;
  int64_t fixed_ = -1;  // items up to this one are fixed
  std::span<int32_t> label_;
  std::vector<int32_t> tight_;                // clusters each item may be in, ascending,
  std::vector<int64_t> tight_begin_;          // [n + 1] by item
  std::vector<std::vector<int32_t>> movers_;  // [R, R] items of a that may move to b; may hold stale entries
  std::vector<int64_t> live_;                 // [R, R] how many there really are
  std::vector<uint64_t> into_;                // [R, words] bit a of row b: live_[a, b] > 0
  std::vector<uint64_t> seen_;
  std::vector<int32_t> next_, queue_;
};

}  // namespace

void take_smallest_labels(std::span<const int64_t> cost, int64_t clusters, std::span<const int64_t> item_price,
                          std::span<const int64_t> cluster_price, std::span<int32_t> label) {
  TightExchange(cost, clusters, item_price, cluster_price, label).run();
}

}  // namespace cmoe
