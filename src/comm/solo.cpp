#include "comm/solo.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/error.h"

namespace cmoe {
namespace {

class EndedRequest final : public Request {
 public:
  bool test() override { return true; }
  void wait() override {}
  void hold(std::shared_ptr<const void>) override {}
};

void copy(void* to, const void* from, int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, static_cast<size_t>(bytes));
}

class SoloCommunicator final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  int node_size() const override { return 1; }
  int node_rank() const override { return 0; }
  int64_t native_handle() const override { fail_internal("a group without a message layer has no handle in it"); }

  void barrier() override {}
  void broadcast_bytes(void*, int64_t, int) override {}
  void all_reduce_sum(std::span<int64_t>) override {}
  void all_reduce_max(std::span<double>) override {}
  void all_reduce_max(std::span<int64_t>) override {}
  std::vector<std::byte> all_gather_bytes(std::span<const std::byte> mine, std::vector<int64_t>* bytes_per_rank) override {
    if (bytes_per_rank) bytes_per_rank->assign(1, static_cast<int64_t>(mine.size()));
    return {mine.begin(), mine.end()};
  }
  void all_to_all_v(const void* send, std::span<const int64_t> send_counts, void* recv, std::span<const int64_t>,
                    int64_t row_bytes) override {
    copy(recv, send, send_counts[0] * row_bytes);
  }
  std::vector<int64_t> all_to_all(std::span<const int64_t> values) override { return {values.begin(), values.end()}; }
  std::unique_ptr<Request> start_exchange(std::span<const MemoryBlock<const std::byte>> send,
                                          std::span<const MemoryBlock<std::byte>> receive) override {
    copy(receive[0].data, send[0].data, send[0].bytes);
    return std::make_unique<EndedRequest>();
  }
  std::unique_ptr<Communicator> split(int) override { return make_solo_communicator(); }
  void abort(const std::string& message, int exit_code) override {
    std::fprintf(stderr, "%s\n", message.c_str());
    std::_Exit(exit_code);
  }
};

}  // namespace

std::unique_ptr<Communicator> make_solo_communicator() { return std::make_unique<SoloCommunicator>(); }

}  // namespace cmoe
