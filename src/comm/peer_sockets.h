#pragma once

#include <string>
#include <utility>
#include <vector>

#include "comm/communicator.h"

namespace cmoe {

/// A file descriptor, closed with its owner.
class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  ~Descriptor() { reset(); }
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    if (this != &other) {
      reset();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  int get() const { return fd_; }
  bool open() const { return fd_ >= 0; }
  void reset();

 private:
  int fd_;
};

/// TCP connections between all pairs of ranks, beside the message layer: by rank, nothing in this rank's own place.
struct PeerSockets {
  std::vector<Descriptor> sockets;
  std::vector<std::string> hosts;
  std::string problem;  ///< why this rank lacks a connection; empty when it has all
};

/// Ranks exchange their addresses through the communicator, then each connects to all lower ones; a shared secret keeps
/// strangers out. Ranks of one machine (and network namespace) meet on the loopback interface, others on the address that
/// shares most leading bits with one of their own. Takes `patience_s` at most for ranks that cannot be reached. Collective.
PeerSockets connect_peers(Communicator& comm, double patience_s = 10);

}  // namespace cmoe
