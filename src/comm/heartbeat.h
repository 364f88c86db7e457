#pragma once

#include <memory>
#include <string>

#include "base/error.h"
#include "comm/communicator.h"

namespace cmoe {

/// Watches the ranks of a job over TCP connections of its own, in a thread of its own that makes no MPI call: a collective that
/// waits for a dead rank does not stop it. Every rank says once a second that it lives, and where it is in its work
/// (base/stage.h).
///
/// A rank that dies, stops, loses its network or meets an error ends all ranks, with a non-zero exit code and one line of
/// cause, told by the lowest rank alive. The time from the fault to the end is the rank timeout at most, 10 s unless set: a
/// rank may be silent for 0.8 of it. Temporary outputs registered in base/temporary_paths.h are removed. Leaving in order (the
/// destructor) is told to the others and is no fault. A process that was itself stopped holds nothing of that time against the
/// others.
class Heartbeat {
 public:
  /// Collective; starts the thread. Returns nothing for a world of one. When some ranks cannot connect, rank 0 warns, naming
  /// them, and nothing is returned on any rank.
  static std::unique_ptr<Heartbeat> start(Communicator& world);
  /// Says goodbye. To be called after the message layer has been left: until then a peer may still die on us.
  ~Heartbeat();
  Heartbeat(const Heartbeat&) = delete;
  Heartbeat& operator=(const Heartbeat&) = delete;

  /// 0 waits for ever for a rank that is silent; one that died is still noticed. Same on all ranks, soon after each other.
  void set_timeout(double seconds);

  /// This rank met an error. When all ranks did, it is told once, without a rank, and the call returns so that all leave in
  /// order; the process ends by itself should that take longer than 2 s. Otherwise the call does not return: all ranks end with
  /// the code.
  void end_together(const std::string& message, ExitCode code);

 private:
  class Thread;
  explicit Heartbeat(std::unique_ptr<Thread> thread);
  std::unique_ptr<Thread> thread_;
};

}  // namespace cmoe
