#include "serve/admission.h"

#include <optional>
#include <tuple>

namespace cmoe {

AdmissionQueue::AdmissionQueue(std::vector<int64_t> kv_bytes, std::vector<int64_t> rank_bytes, int64_t max_batch)
    : kv_bytes_(std::move(kv_bytes)),
      free_bytes_(std::move(rank_bytes)),
      sequences_(free_bytes_.size(), 0),
      rank_of_(kv_bytes_.size(), -1),
      max_batch_(max_batch) {}

std::vector<Admission> AdmissionQueue::admit() {
  std::vector<Admission> admitted;
  for (; next_ < kv_bytes_.size(); ++next_) {
    std::optional<size_t> best;
    for (size_t r = 0; r < free_bytes_.size(); ++r) {
      if (sequences_[r] >= max_batch_ || free_bytes_[r] < kv_bytes_[next_]) continue;
      const auto order = [&](size_t rank) { return std::tuple(sequences_[rank], -free_bytes_[rank], rank); };
      if (!best || order(r) < order(*best)) best = r;
    }
    if (!best) break;
    ++sequences_[*best];
    free_bytes_[*best] -= kv_bytes_[next_];
    rank_of_[next_] = static_cast<int64_t>(*best);
    ++running_;
    admitted.push_back({static_cast<int64_t>(next_), rank_of_[next_]});
  }
  return admitted;
}

void AdmissionQueue::release(int64_t request) {
  const auto r = static_cast<size_t>(rank_of_[static_cast<size_t>(request)]);
  --sequences_[r];
  free_bytes_[r] += kv_bytes_[static_cast<size_t>(request)];
  --running_;
}

}  // namespace cmoe
