#include "jobs/evaluation.h"

#include <algorithm>
#include <filesystem>

#include "base/atomic_file.h"
#include "base/read_file.h"

namespace cmoe::jobs {

void add_to_card(const std::string& model, const std::string& title, const std::string& columns, const std::string& rows) {
  const std::string path = model + "/README.md";
  if (!std::filesystem::exists(model + "/manifest.json") || !std::filesystem::exists(path)) return;
  std::string card = read_file(path);
  const std::string heading = "\n## " + title + "\n";
  size_t begin = card.find(heading);
  if (begin == std::string::npos) {
    begin = card.size();
    const auto count = std::count(columns.begin(), columns.end(), '|') - 1;
    std::string rule = "|";
    for (int64_t i = 0; i < count; ++i) rule += "---|";
    card += heading + "\n" + columns + "\n" + rule + "\n";
  }
  const size_t next = card.find("\n## ", begin + heading.size());
  card.insert(next == std::string::npos ? card.size() : next, rows);
  write_file_atomically(path, card);
}

}  // namespace cmoe::jobs
