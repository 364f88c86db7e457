#include "data/windows.h"

#include <algorithm>
#include <charconv>
#include <fstream>

#include "base/error.h"
#include "data/python_random.h"

namespace cmoe {

std::vector<int64_t> random_offsets(int64_t tokens, int64_t seq_len, int64_t count, uint64_t seed) {
  CMOE_CHECK(seq_len >= 1 && count >= 1, "windows: {} windows of {} tokens; expected at least 1 of each", count, seq_len);
  CMOE_CHECK(tokens > seq_len,
             "text: {} tokens are too few for a random window of {}; expected at least {}; give more text or lower "
             "--seq-len",
             tokens, seq_len, seq_len + 1);
  PythonRandom random(seed);
  std::vector<int64_t> offsets(static_cast<size_t>(count));
  for (int64_t& offset : offsets) offset = random.between(0, tokens - seq_len - 1);
  return offsets;
}

std::vector<int64_t> read_offsets(const std::string& path, int64_t tokens, int64_t seq_len) {
  std::ifstream file(path);
  CMOE_CHECK(file.good(), "{}: cannot be opened; expected a file of offsets, one a line", path);
  std::vector<int64_t> offsets;
  std::string line;
  for (int64_t number = 1; std::getline(file, line); ++number) {
    std::string_view text = std::string_view(line).substr(0, line.find('#'));
    const size_t begin = text.find_first_not_of(" \t\r");
    if (begin == std::string_view::npos) continue;
    text = text.substr(begin, text.find_last_not_of(" \t\r") - begin + 1);
    int64_t offset = -1;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), offset);
    CMOE_CHECK(error == std::errc() && end == text.data() + text.size(),
               "{}: line {}: '{}' is not an offset; expected one whole number", path, number, text);
    CMOE_CHECK(offset >= 0 && offset <= tokens - seq_len,
               "{}: line {}: offset {} is out of range; a window of {} in {} tokens begins at 0 to {}", path, number, offset,
               seq_len, tokens, tokens - seq_len);
    offsets.push_back(offset);
  }
  CMOE_CHECK(!offsets.empty(), "{}: no offsets; expected one a line", path);
  return offsets;
}

std::vector<int64_t> consecutive_offsets(int64_t tokens, int64_t seq_len, int64_t limit) {
  CMOE_CHECK(seq_len >= 1, "windows: length {}; expected at least 1", seq_len);
  CMOE_CHECK(tokens >= seq_len, "text: {} tokens are too few for a window of {}; give more text or lower --seq-len", tokens,
             seq_len);
  int64_t count = tokens / seq_len;
  if (limit > 0) count = std::min(count, limit);
  std::vector<int64_t> offsets(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) offsets[static_cast<size_t>(i)] = i * seq_len;
  return offsets;
}

std::vector<StridedWindow> strided_windows(int64_t tokens, int64_t seq_len, int64_t stride) {
  CMOE_CHECK(stride >= 1 && stride < seq_len, "windows: stride {} does not fit windows of {}; expected 1 to {}", stride,
             seq_len, seq_len - 1);
  CMOE_CHECK(tokens >= 2, "text: {} tokens are too few to predict one; expected at least 2", tokens);
  std::vector<StridedWindow> windows;
  int64_t scored = 1;  // tokens before this have been predicted; the first never is
  for (int64_t offset = 0; scored < tokens; offset += stride) {
    const int64_t length = std::min(seq_len, tokens - offset);
    windows.push_back({offset, length, scored - offset});
    scored = offset + length;
  }
  return windows;
}

std::pair<int64_t, int64_t> shard_of(int64_t count, int64_t rank, int64_t size) {
  const int64_t share = count / size;
  const int64_t larger = count % size;  // ranks with one more
  const int64_t begin = rank * share + std::min(rank, larger);
  return {begin, begin + share + (rank < larger ? 1 : 0)};
}

}  // namespace cmoe
