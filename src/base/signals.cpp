#include "base/signals.h"

#include <signal.h>

#include <array>
#include <atomic>

namespace cmoe {
namespace {

constexpr std::array<int, 2> kSignals{SIGTERM, SIGUSR1};

std::atomic<int> first_signal{0};
static_assert(std::atomic<int>::is_always_lock_free, "a signal handler may not take a lock");
std::array<struct sigaction, 2> earlier;

void on_signal(int signal) {
  int none = 0;
  const bool first = first_signal.compare_exchange_strong(none, signal);
  if (first || signal != SIGTERM) return;
  // The work did not reach a boundary in time: the default action ends the process with the signal's own status.
  ::signal(SIGTERM, SIG_DFL);
  ::raise(SIGTERM);
}

}  // namespace

StopSignals::StopSignals() {
  first_signal = 0;
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;  // reads and writes in progress go on
  sigemptyset(&action.sa_mask);
  for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &action, &earlier[i]);
}

StopSignals::~StopSignals() {
  for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &earlier[i], nullptr);
  first_signal = 0;
}

bool stop_requested() { return first_signal.load() != 0; }

const char* stop_signal_name() {
  switch (first_signal.load()) {
    case SIGTERM:
      return "SIGTERM";
    case SIGUSR1:
      return "SIGUSR1";
    default:
      return "";
  }
}

}  // namespace cmoe
