#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace cmoe {

/// A piece of host memory that goes to, or comes from, one rank.
template <class Byte>
struct MemoryBlock {
  Byte* data = nullptr;
  int64_t bytes = 0;
};

/// A transfer under way. Its memory must stay in place until wait() returned or test() said true.
class Request {
 public:
  /// Never blocks. A request that did not end, because its rank unwinds after an error, leaves the memory given to hold() to
  /// the transfer for the rest of the program.
  virtual ~Request() = default;
  /// Moves the transfer along; true when it has ended.
  virtual bool test() = 0;
  virtual void wait() = 0;
  /// Keeps memory alive until the transfer has ended.
  virtual void hold(std::shared_ptr<const void> memory) = 0;
};

/// A group of ranks and its collectives over host memory. Every collective is called by all ranks of the group, in the same
/// order; a group of one and a rank with nothing to send are ordinary. Counts are elements and may exceed 2^31: transfers are
/// split below the transport's limits. A failure names the call, the library's message, rank and host.
///
/// Sums of integers are exact, hence independent of the number of ranks; floating-point data is only moved, never added, by
/// this interface (see carve/reproducible_sum.h for sums of real numbers).
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// Ranks of this group on this rank's node, and this rank's number among them.
  virtual int node_size() const = 0;
  virtual int node_rank() const = 0;
  /// The transport's own name for this group, as an integer: for a library that communicates by itself (parallel HDF5).
  virtual int64_t native_handle() const = 0;

  virtual void barrier() = 0;
  virtual void broadcast_bytes(void* data, int64_t bytes, int root) = 0;
  virtual void all_reduce_sum(std::span<int64_t> values) = 0;
  virtual void all_reduce_max(std::span<double> values) = 0;
  virtual void all_reduce_max(std::span<int64_t> values) = 0;
  /// Each rank's `mine`, concatenated in rank order; lengths may differ, and may be zero.
  virtual std::vector<std::byte> all_gather_bytes(std::span<const std::byte> mine, std::vector<int64_t>* bytes_per_rank) = 0;
  /// Row exchange: rank r receives the rows that each rank addressed to it, in rank order.
  /// `send_counts[r]` rows of `row_bytes` bytes go to rank r, contiguous in rank order; `recv_counts` must match what they
  /// send.
  virtual void all_to_all_v(const void* send, std::span<const int64_t> send_counts, void* recv,
                            std::span<const int64_t> recv_counts, int64_t row_bytes) = 0;
  /// The same number of values per destination rank: n * size() values, of which the r-th n go to rank r; returns the n values
  /// of each rank, in rank order. n must be equal on all ranks.
  virtual std::vector<int64_t> all_to_all(std::span<const int64_t> values) = 0;
  /// Starts an exchange between all pairs of ranks and returns at once: send[r] goes to rank r, receive[r] takes what rank r
  /// sends here, and both sides of a pair give the same size. Empty blocks cost no message. What is for this rank itself is
  /// copied before the call returns. Several may be under way; all ranks start them in the same order.
  virtual std::unique_ptr<Request> start_exchange(std::span<const MemoryBlock<const std::byte>> send,
                                                  std::span<const MemoryBlock<std::byte>> receive) = 0;

  /// Ranks of the same colour form a group, in rank order.
  virtual std::unique_ptr<Communicator> split(int color) = 0;

  /// Ends all ranks of the job at once, with one line naming rank and host. Does not return.
  [[noreturn]] virtual void abort(const std::string& message, int exit_code) = 0;

  // Typed conveniences over the calls above.
  template <class T>
  void broadcast(std::span<T> values, int root) {
    broadcast_bytes(values.data(), static_cast<int64_t>(values.size_bytes()), root);
  }
  template <class T>
  std::vector<T> all_gather_v(std::span<const T> mine, std::vector<int64_t>* count_per_rank = nullptr) {
    std::vector<int64_t> bytes;
    const std::vector<std::byte> all = all_gather_bytes(std::as_bytes(mine), &bytes);
    if (count_per_rank) {
      count_per_rank->clear();
      for (int64_t b : bytes) count_per_rank->push_back(b / static_cast<int64_t>(sizeof(T)));
    }
    std::vector<T> values(all.size() / sizeof(T));
    if (!all.empty()) __builtin_memcpy(values.data(), all.data(), all.size());
    return values;
  }
  std::string broadcast_string(std::string text, int root);
  std::vector<std::string> all_gather_strings(const std::string& mine);
};

class Heartbeat;

/// Starts the message layer for the life of the program. Alone, the program is a world of one; under mpirun or srun, of N.
/// @throws Error when a launcher started N copies that cannot see each other (no PMIx), with the fix.
///
/// An error on one rank must not unwind past this object while the others work: leaving MPI in order waits for all ranks. Catch
/// it below the Environment and call world().abort(); as a last resort the destructor aborts the job itself.
class Environment {
 public:
  Environment(int& argc, char**& argv);
  ~Environment();
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

  Communicator& world() { return *world_; }
  /// Starts to watch the ranks (comm/heartbeat.h), until after the message layer has been left. Collective.
  void watch_ranks();
  /// Nothing before watch_ranks(), in a world of one, and where the ranks could not connect.
  Heartbeat* heartbeat() { return heartbeat_.get(); }
  static std::string library_version();
  /// Splits one transfer after this many bytes; tests lower it. Default 1 GiB.
  static void set_max_transfer_bytes(int64_t bytes);

 private:
  int exceptions_at_start_;
  std::unique_ptr<Communicator> world_;
  std::unique_ptr<Heartbeat> heartbeat_;
};

/// The name of this machine.
std::string host_name();

}  // namespace cmoe
