#include "comm/stop.h"

#include <array>

#include "base/error.h"
#include "base/signals.h"
#include "comm/communicator.h"

namespace cmoe {

void stop_together(Communicator& comm, std::string_view stage) {
  std::array<int64_t, 1> stop{stop_requested() ? 1 : 0};
  comm.all_reduce_max(std::span<int64_t>(stop));
  if (stop[0] != 0)
    throw Error(fmt::format("{}: stopped by a signal; nothing was written under its final name", stage), ExitCode::requeue);
}

}  // namespace cmoe
