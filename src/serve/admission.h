#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace cmoe {

/// A waiting sequence that begins, and the rank that owns it from now on.
struct Admission {
  int64_t request;
  int64_t rank;
};

/// Decides when waiting sequences begin, and where: in their order, each on the rank with the fewest sequences under way (then
/// the fewest cache bytes, then the smallest number) that has room for it. The first that fits nowhere waits, and all behind
/// it, so that a long prompt is not passed over for ever.
class AdmissionQueue {
 public:
  /// @param kv_bytes   [requests] of each sequence's KV cache at its full length
  /// @param rank_bytes [ranks] room for KV caches; every request must fit the largest
  /// @param max_batch  sequences under way on one rank
  AdmissionQueue(std::vector<int64_t> kv_bytes, std::vector<int64_t> rank_bytes, int64_t max_batch);

  /// What begins now.
  std::vector<Admission> admit();
  /// A sequence has left.
  void release(int64_t request);
  bool all_done() const { return next_ == kv_bytes_.size() && running_ == 0; }
  int64_t running() const { return running_; }

 private:
  std::vector<int64_t> kv_bytes_, free_bytes_, sequences_, rank_of_;
  int64_t max_batch_;
  size_t next_ = 0;
  int64_t running_ = 0;
};

}  // namespace cmoe
