// The communicator on MPI; the only file that sees mpi.h.

#define OMPI_SKIP_MPICXX 1  // the C++ bindings left the standard in MPI 3
#include <mpi.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>

#include "base/error.h"
#include "comm/communicator.h"
#include "comm/heartbeat.h"
#include "comm/launch.h"

namespace cmoe {
namespace {

constexpr int64_t kDefaultMaxTransferBytes = int64_t{1} << 30;
constexpr int kRowTag = 1;

std::atomic<int64_t> max_transfer_bytes{kDefaultMaxTransferBytes};
int world_rank = 0;  // of this process, for messages
int world_size = 1;

std::string error_text(int code) {
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  return {text, static_cast<size_t>(length)};
}

void check_call(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  fail_internal("[rank {}/{} {}] {}: {}", world_rank, world_size, host_name(), call, error_text(code));
}

#define CMOE_MPI_CALL(...) check_call(__VA_ARGS__, #__VA_ARGS__)

// Calls piece(begin, length) over [0, count) in pieces of at most `most`. Every rank of a collective passes the same count and
// so makes the same calls.
template <class Piece>
void in_pieces(int64_t count, int64_t most, Piece piece) {
  for (int64_t begin = 0; begin < count; begin += most) piece(begin, static_cast<int>(std::min(most, count - begin)));
}

// The messages of one exchange.
class MpiRequest final : public Request {
 public:
  static constexpr int kSend = -1;

  MpiRequest() = default;
  MpiRequest(const MpiRequest&) = delete;
  MpiRequest& operator=(const MpiRequest&) = delete;

  ~MpiRequest() override {
    int finalized = 0, done = 0;
    MPI_Finalized(&finalized);
    if (!requests_.empty() && !finalized) {
      MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &done, MPI_STATUSES_IGNORE);
    }
    if (requests_.empty() || done) return;
    // Messages may still write to this memory; the rank is on its way to abort the job.
    static auto* const abandoned = new std::vector<std::shared_ptr<const void>>;
    abandoned->insert(abandoned->end(), held_.begin(), held_.end());
  }

  bool test() override {
    if (requests_.empty()) return true;
    std::vector<MPI_Status> statuses(requests_.size());
    int done = 0;
    const int code = MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &done, statuses.data());
    if (code != MPI_SUCCESS || done) finish(code, statuses, "MPI_Testall(exchange)");
    return requests_.empty();
  }

  void wait() override {
    if (requests_.empty()) return;
    std::vector<MPI_Status> statuses(requests_.size());
    finish(MPI_Waitall(static_cast<int>(requests_.size()), requests_.data(), statuses.data()), statuses,
           "MPI_Waitall(exchange)");
  }

  void hold(std::shared_ptr<const void> memory) override {
    if (!requests_.empty() && memory) held_.push_back(std::move(memory));
  }

  // A place for the next message's handle: one that receives `length` bytes, or sends. Valid until the next call.
  MPI_Request* add(int length) {
    lengths_.push_back(length);
    return &requests_.emplace_back(MPI_REQUEST_NULL);
  }

 private:
  void finish(int code, const std::vector<MPI_Status>& statuses, const char* call) {
    if (code == MPI_ERR_IN_STATUS) {
      for (const MPI_Status& status : statuses) {
        if (status.MPI_ERROR != MPI_ERR_PENDING) check_call(status.MPI_ERROR, call);
      }
    }
    check_call(code, call);
    for (size_t i = 0; i < statuses.size(); ++i) {
      int length = 0;
      if (lengths_[i] != kSend) MPI_Get_count(&statuses[i], MPI_BYTE, &length);
      if (lengths_[i] == kSend || length == lengths_[i]) continue;
      fail_internal("[rank {}/{} {}] {}: rank {} of the group sent {} bytes; expected {}", world_rank, world_size, host_name(),
                    call, statuses[i].MPI_SOURCE, length, lengths_[i]);
    }
    requests_.clear();
    held_.clear();
  }

  std::vector<MPI_Request> requests_;  // empty when all have ended
  std::vector<int> lengths_;
  std::vector<std::shared_ptr<const void>> held_;
};

class MpiCommunicator final : public Communicator {
 public:
  // Takes ownership of `comm`. Collective: it finds the ranks of this node.
  explicit MpiCommunicator(MPI_Comm comm) : comm_(comm) {
    CMOE_MPI_CALL(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN));
    CMOE_MPI_CALL(MPI_Comm_rank(comm_, &rank_));
    CMOE_MPI_CALL(MPI_Comm_size(comm_, &size_));
    MPI_Comm node = MPI_COMM_NULL;
    CMOE_MPI_CALL(MPI_Comm_split_type(comm_, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &node));
    CMOE_MPI_CALL(MPI_Comm_rank(node, &node_rank_));
    CMOE_MPI_CALL(MPI_Comm_size(node, &node_size_));
    CMOE_MPI_CALL(MPI_Comm_free(&node));
  }

  ~MpiCommunicator() override {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (!finalized) MPI_Comm_free(&comm_);
  }

  MpiCommunicator(const MpiCommunicator&) = delete;
  MpiCommunicator& operator=(const MpiCommunicator&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int node_size() const override { return node_size_; }
  int node_rank() const override { return node_rank_; }
  int64_t native_handle() const override { return MPI_Comm_c2f(comm_); }

  void barrier() override { CMOE_MPI_CALL(MPI_Barrier(comm_)); }

  void broadcast_bytes(void* data, int64_t bytes, int root) override {
    in_pieces(bytes, max_transfer_bytes, [&](int64_t begin, int length) {
      CMOE_MPI_CALL(MPI_Bcast(static_cast<char*>(data) + begin, length, MPI_BYTE, root, comm_));
    });
  }

  void all_reduce_sum(std::span<int64_t> values) override { reduce(values, MPI_INT64_T, MPI_SUM); }
  void all_reduce_max(std::span<double> values) override { reduce(values, MPI_DOUBLE, MPI_MAX); }
  void all_reduce_max(std::span<int64_t> values) override { reduce(values, MPI_INT64_T, MPI_MAX); }

  std::vector<std::byte> all_gather_bytes(std::span<const std::byte> mine, std::vector<int64_t>* bytes_per_rank) override {
    const int64_t my_bytes = static_cast<int64_t>(mine.size());
    std::vector<int64_t> bytes(static_cast<size_t>(size_)), begins(bytes.size());
    CMOE_MPI_CALL(MPI_Allgather(&my_bytes, 1, MPI_INT64_T, bytes.data(), 1, MPI_INT64_T, comm_));
    int64_t total = 0;
    for (size_t r = 0; r < bytes.size(); ++r) {
      begins[r] = total;
      total += bytes[r];
    }
    std::vector<std::byte> all(static_cast<size_t>(total));
    if (total > 0 && total <= max_transfer_bytes) {
      const std::vector<int> counts(bytes.begin(), bytes.end()), displacements(begins.begin(), begins.end());
      CMOE_MPI_CALL(MPI_Allgatherv(mine.data(), static_cast<int>(my_bytes), MPI_BYTE, all.data(), counts.data(),
                                   displacements.data(), MPI_BYTE, comm_));
    } else if (total > 0) {
      // Displacements are ints, so a large result arrives rank by rank.
      if (my_bytes > 0) std::memcpy(all.data() + begins[static_cast<size_t>(rank_)], mine.data(), mine.size());
      for (size_t r = 0; r < bytes.size(); ++r) broadcast_bytes(all.data() + begins[r], bytes[r], static_cast<int>(r));
    }
    if (bytes_per_rank) *bytes_per_rank = std::move(bytes);
    return all;
  }

  void all_to_all_v(const void* send, std::span<const int64_t> send_counts, void* recv, std::span<const int64_t> recv_counts,
                    int64_t row_bytes) override {
    const std::vector<int64_t> send_begin = offsets(send_counts, row_bytes, "send_counts");
    const std::vector<int64_t> recv_begin = offsets(recv_counts, row_bytes, "recv_counts");
    std::vector<MemoryBlock<const std::byte>> from(send_counts.size());
    std::vector<MemoryBlock<std::byte>> to(recv_counts.size());
    for (size_t r = 0; r < from.size(); ++r) {
      from[r] = {static_cast<const std::byte*>(send) + send_begin[r], send_begin[r + 1] - send_begin[r]};
      to[r] = {static_cast<std::byte*>(recv) + recv_begin[r], recv_begin[r + 1] - recv_begin[r]};
    }
    start_exchange(from, to)->wait();
  }

  std::vector<int64_t> all_to_all(std::span<const int64_t> values) override {
    const auto each = static_cast<int>(values.size() / static_cast<size_t>(size_));
    if (static_cast<size_t>(each) * static_cast<size_t>(size_) != values.size()) {
      fail_internal("[rank {}/{} {}] values has {} entries; expected the same number for each of {} ranks", rank_, size_,
                    host_name(), values.size(), size_);
    }
    std::vector<int64_t> received(values.size());
    CMOE_MPI_CALL(MPI_Alltoall(values.data(), each, MPI_INT64_T, received.data(), each, MPI_INT64_T, comm_));
    return received;
  }

  // Pairwise messages instead of MPI_Ialltoallv: sender and receiver of a pair know the same size, so each pair is split (or
  // skipped) on its own, where a collective would need one more reduction to agree on the number of rounds.
  std::unique_ptr<Request> start_exchange(std::span<const MemoryBlock<const std::byte>> send,
                                          std::span<const MemoryBlock<std::byte>> receive) override {
    check_one_per_rank(send.size(), "send");
    check_one_per_rank(receive.size(), "receive");
    const auto me = static_cast<size_t>(rank_);
    if (send[me].bytes != receive[me].bytes) {
      fail_internal("[rank {}/{} {}] exchange: {} bytes sent to self, {} expected from self", rank_, size_, host_name(),
                    send[me].bytes, receive[me].bytes);
    }
    auto request = std::make_unique<MpiRequest>();
    // Each rank starts with its own neighbour, so that no rank is everyone's first target.
    for (int step = 1; step < size_; ++step) {
      const int peer = (rank_ - step + size_) % size_;
      const auto& block = receive[static_cast<size_t>(peer)];
      in_pieces(block.bytes, max_transfer_bytes, [&](int64_t begin, int length) {
        CMOE_MPI_CALL(MPI_Irecv(block.data + begin, length, MPI_BYTE, peer, kRowTag, comm_, request->add(length)));
      });
    }
    for (int step = 1; step < size_; ++step) {
      const int peer = (rank_ + step) % size_;
      const auto& block = send[static_cast<size_t>(peer)];
      in_pieces(block.bytes, max_transfer_bytes, [&](int64_t begin, int length) {
        CMOE_MPI_CALL(MPI_Isend(block.data + begin, length, MPI_BYTE, peer, kRowTag, comm_, request->add(MpiRequest::kSend)));
      });
    }
    if (send[me].bytes > 0) std::memcpy(receive[me].data, send[me].data, static_cast<size_t>(send[me].bytes));
    return request;
  }

  std::unique_ptr<Communicator> split(int color) override {
    if (color < 0) fail_internal("split: color {}; expected >= 0", color);
    MPI_Comm group = MPI_COMM_NULL;
    CMOE_MPI_CALL(MPI_Comm_split(comm_, color, rank_, &group));
    return std::make_unique<MpiCommunicator>(group);
  }

  [[noreturn]] void abort(const std::string& message, int exit_code) override {
    std::fflush(stdout);
    std::fprintf(stderr, "[rank %d/%d %s] %s\n", world_rank, world_size, host_name().c_str(), message.c_str());
    std::fflush(stderr);
    // A program without a launcher has nobody to tell; MPI_Abort would add seven lines of its own.
    if (!started_alone(std::getenv)) MPI_Abort(MPI_COMM_WORLD, exit_code);
    std::_Exit(exit_code);
  }

 private:
  template <class T>
  void reduce(std::span<T> values, MPI_Datatype type, MPI_Op operation) {
    const int64_t most = std::max<int64_t>(1, max_transfer_bytes / static_cast<int64_t>(sizeof(T)));
    in_pieces(static_cast<int64_t>(values.size()), most, [&](int64_t begin, int length) {
      CMOE_MPI_CALL(MPI_Allreduce(MPI_IN_PLACE, values.data() + begin, length, type, operation, comm_));
    });
  }

  void check_one_per_rank(size_t entries, const char* what) const {
    if (entries == static_cast<size_t>(size_)) return;
    fail_internal("[rank {}/{} {}] {} has {} entries; expected one per rank", rank_, size_, host_name(), what, entries);
  }

  // Byte offset of each rank's rows, and the total at the end.
  std::vector<int64_t> offsets(std::span<const int64_t> counts, int64_t row_bytes, const char* what) const {
    check_one_per_rank(counts.size(), what);
    std::vector<int64_t> begins{0};
    for (const int64_t count : counts) {
      if (count < 0 || row_bytes < 0) {
        fail_internal("[rank {}/{} {}] {}: {} rows of {} bytes; expected >= 0", rank_, size_, host_name(), what, count,
                      row_bytes);
      }
      begins.push_back(begins.back() + count * row_bytes);
    }
    return begins;
  }

  MPI_Comm comm_;
  int rank_ = 0, size_ = 1, node_rank_ = 0, node_size_ = 1;
};

}  // namespace

Environment::Environment(int& argc, char**& argv) : exceptions_at_start_(std::uncaught_exceptions()) {
  if (const auto problem = find_launch_problem(0, std::getenv)) fail("{}", *problem);
  // Without a launcher Open MPI would start a daemon for MPI_Comm_spawn, which nothing here calls.
  if (started_alone(std::getenv)) {
    setenv("OMPI_MCA_ess_singleton_isolated", "1", 0);
    // All such processes of a user would share one folder under /tmp, and the first to end takes it from the others.
    setenv("OMPI_MCA_orte_create_session_dirs", "0", 0);
  }
  int provided = MPI_THREAD_SINGLE;
  check_call(MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided), "MPI_Init_thread");
  try {
    CMOE_MPI_CALL(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
    CMOE_MPI_CALL(MPI_Comm_rank(MPI_COMM_WORLD, &world_rank));
    CMOE_MPI_CALL(MPI_Comm_size(MPI_COMM_WORLD, &world_size));
    if (const auto problem = find_launch_problem(world_size, std::getenv)) fail("{}", *problem);
    if (provided < MPI_THREAD_MULTIPLE) {
      fail_internal("MPI_Init_thread: thread level {}; expected {} (MPI_THREAD_MULTIPLE); this MPI was built without threads",
                    provided, MPI_THREAD_MULTIPLE);
    }
    MPI_Comm world = MPI_COMM_NULL;  // our own copy: no message of another library can match ours
    CMOE_MPI_CALL(MPI_Comm_dup(MPI_COMM_WORLD, &world));
    world_ = std::make_unique<MpiCommunicator>(world);
  } catch (...) {
    if (world_size == 1) MPI_Finalize();
    throw;
  }
}

Environment::~Environment() {
  // The other ranks are still in their work and would never reach MPI_Finalize, which waits for all.
  if (world_size > 1 && std::uncaught_exceptions() > exceptions_at_start_) {
    const char* message = "an error left the message layer while the other ranks are at work";
    if (heartbeat_) heartbeat_->end_together(message, ExitCode::failure);
    world_->abort(message, static_cast<int>(ExitCode::failure));
  }
  world_.reset();
  MPI_Finalize();
  heartbeat_.reset();  // a rank may die while the others wait for it in MPI_Finalize
}

void Environment::watch_ranks() { heartbeat_ = Heartbeat::start(*world_); }

std::string Environment::library_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  MPI_Get_library_version(text, &length);
  const std::string version(text, static_cast<size_t>(length));
  return version.substr(0, version.find(','));
}

void Environment::set_max_transfer_bytes(int64_t bytes) {
  if (bytes < 1 || bytes > INT_MAX) fail_internal("set_max_transfer_bytes: {}; expected 1 to {}", bytes, INT_MAX);
  max_transfer_bytes = bytes;
}

}  // namespace cmoe
