#include "comm/same_on_all_ranks.h"

#include <sstream>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/sha256.h"
#include "comm/communicator.h"

namespace cmoe {
namespace {

// The first lines that differ; an absent line is told as such.
std::pair<std::string, std::string> first_difference(const std::string& a, const std::string& b) {
  std::istringstream left(a), right(b);
  for (;;) {
    std::string x = "nothing", y = "nothing";
    const bool more_x = static_cast<bool>(std::getline(left, x)), more_y = static_cast<bool>(std::getline(right, y));
    if (!more_x) x = "nothing";
    if (!more_y) y = "nothing";
    if ((!more_x && !more_y) || x != y) return {x, y};
  }
}

}  // namespace

void check_same_on_all_ranks(Communicator& comm, std::string_view what, const std::string& value) {
  const std::vector<std::string> hashes = comm.all_gather_strings(sha256_hex(value));
  int other = 0;
  for (int r = comm.size() - 1; r > 0; --r) {
    if (hashes[static_cast<size_t>(r)] != hashes[0]) other = r;
  }
  if (other == 0) return;
  const bool speaks = comm.rank() == 0 || comm.rank() == other;
  const std::vector<std::string> values = comm.all_gather_strings(speaks ? value : "");
  const std::vector<std::string> hosts = comm.all_gather_strings(speaks ? host_name() : "");
  const auto index = static_cast<size_t>(other);
  const auto [found, expected] = first_difference(values[index], values[0]);
  fail(
      "rank {} on host {} has another {} ({}) than rank 0 on host {} ({}); start all ranks with the same program, options and "
      "files",
      other, hosts[index], what, found, hosts[0], expected);
}

}  // namespace cmoe
