#pragma once

namespace cmoe {

/// While it lives, SIGTERM and SIGUSR1 ask the program to stop at its next step boundary instead of ending it: schedulers send
/// them before a time limit or a preemption. One rank may be signalled alone, so the flag is reduced over the ranks
/// (all_reduce_max) where the work can stop. A second SIGTERM ends the process at once. One object at a time; the destructor
/// puts the earlier handlers back and clears the flag.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;
};

/// True once a signal arrived. Any thread may ask.
bool stop_requested();

/// The first signal that arrived ("SIGTERM", "SIGUSR1"), "" when none did.
const char* stop_signal_name();

}  // namespace cmoe
