#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/stage.h"

namespace cmoe {

/// What one rank knows of the others, and the rule by which all ranks agree on one cause and on who tells it. No sockets and no
/// clock: times are seconds of any steady clock, passed in. One thread.
///
/// The lowest rank that is alive speaks; the others wait for its verdict, and speak themselves only when none comes.
class RankWatch {
 public:
  /// Why the job must end, as a rank saw it.
  enum class Kind : int32_t { error, closed, silent };
  struct Report {
    Kind kind = Kind::error;
    int32_t about = 0;      ///< the rank that failed
    int32_t exit_code = 1;  ///< of the job
    Stage stage;            ///< where that rank was last seen
    std::string text;       ///< error: its message; silent: for how long; closed: empty
  };
  struct Verdict {
    std::string line;  ///< what the speaker prints
    int32_t exit_code = 1;
    bool orderly = false;  ///< every rank met an error and waits: all may leave in order
  };

  RankWatch(int rank, std::vector<std::string> hosts, double now);

  /// A rank may be silent for 0.8 * timeout_s; 0 lets it be silent for ever. Timers start anew.
  void set_timeout(double timeout_s, double now);
  double timeout_s() const { return timeout_s_; }
  /// Seconds between this rank's own heartbeats.
  double beat_interval_s() const;

  void heard(int peer, double now, const Stage& stage, double beat_interval_s);
  /// The peer said that it ends in order: it is not watched any more.
  void left(int peer);
  void closed(int peer, double now);
  /// What another rank, or this one, has to say.
  void add(const Report& report, double now);
  /// This process stood still (stopped, suspended): what it did not hear meanwhile is no evidence.
  void forgive(double now);

  /// Looks for silent ranks. New reports of this rank's own making since the last call, to be told to all.
  std::vector<Report> find_lost(double now);
  /// The verdict, when this rank is the one to give it now.
  std::optional<Verdict> decide(double now) const;
  bool in_trouble() const { return !reports_.empty(); }

 private:
  struct Peer {
    double last_heard = 0, beat_interval_s = 1;
    Stage stage;
    bool left = false, lost = false;
  };

  bool alive(int rank) const;
  bool failed(int rank) const;
  void lose(int peer, Kind kind, std::string text, double now);
  const Report& cause() const;
  std::string describe(const Report& report) const;

  int rank_;
  std::vector<std::string> hosts_;
  std::vector<Peer> peers_;  // by rank; this rank's own entry is never lost
  double timeout_s_ = 10;
  std::vector<Report> reports_, untold_;
  double first_report_ = 0;
};

}  // namespace cmoe
