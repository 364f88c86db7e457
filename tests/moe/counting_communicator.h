#pragma once

#include "comm/communicator.h"

namespace cmoe {

/// Passes calls on and counts the bytes that leave this rank through the exchanges: the oracle of reported bytes.
class CountingCommunicator final : public Communicator {
 public:
  explicit CountingCommunicator(Communicator& inner) : inner_(inner) {}

  int64_t bytes = 0;

  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  int node_size() const override { return inner_.node_size(); }
  int node_rank() const override { return inner_.node_rank(); }
  int64_t native_handle() const override { return inner_.native_handle(); }
  void barrier() override { inner_.barrier(); }
  void broadcast_bytes(void* data, int64_t n, int root) override { inner_.broadcast_bytes(data, n, root); }
  void all_reduce_sum(std::span<int64_t> values) override { inner_.all_reduce_sum(values); }
  void all_reduce_max(std::span<double> values) override { inner_.all_reduce_max(values); }
  void all_reduce_max(std::span<int64_t> values) override { inner_.all_reduce_max(values); }
  std::vector<std::byte> all_gather_bytes(std::span<const std::byte> mine, std::vector<int64_t>* bytes_per_rank) override {
    return inner_.all_gather_bytes(mine, bytes_per_rank);
  }
  void all_to_all_v(const void* send, std::span<const int64_t> send_counts, void* recv, std::span<const int64_t> recv_counts,
                    int64_t row_bytes) override {
    for (size_t r = 0; r < send_counts.size(); ++r) bytes += is_me(r) ? 0 : send_counts[r] * row_bytes;
    inner_.all_to_all_v(send, send_counts, recv, recv_counts, row_bytes);
  }
  std::vector<int64_t> all_to_all(std::span<const int64_t> values) override {
    bytes += static_cast<int64_t>(values.size_bytes()) / size() * (size() - 1);
    return inner_.all_to_all(values);
  }
  std::unique_ptr<Request> start_exchange(std::span<const MemoryBlock<const std::byte>> send,
                                          std::span<const MemoryBlock<std::byte>> receive) override {
    for (size_t r = 0; r < send.size(); ++r) bytes += is_me(r) ? 0 : send[r].bytes;
    return inner_.start_exchange(send, receive);
  }
  std::unique_ptr<Communicator> split(int color) override { return inner_.split(color); }
  void abort(const std::string& message, int exit_code) override { inner_.abort(message, exit_code); }

 private:
  bool is_me(size_t r) const { return static_cast<int>(r) == rank(); }

  Communicator& inner_;
};

}  // namespace cmoe
