#include "train/layout_runs.h"

#include <algorithm>
#include <cstring>
#include <sstream>

#include "base/error.h"

namespace cmoe {
namespace {

// Calls body(place, offset, size) for the parts of the set's parameters among elements [begin, end) of its vector.
template <class Body>
void for_each_part(const ParameterSet& set, int64_t begin, int64_t end, const Body& body) {
  for (const Parameter& parameter : set.all()) {
    const int64_t from = std::max(begin, parameter.offset), to = std::min(end, parameter.offset + parameter.size);
    if (from < to) body(parameter.place + (from - parameter.offset), from, to - from);
  }
}

}  // namespace

LayoutRuns::LayoutRuns(const std::string& text, const std::string& where) {
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    Run run{-1, -1};
    char dash = 0;
    std::istringstream numbers(word);
    CMOE_CHECK(numbers >> run.begin >> dash >> run.end && dash == '-' && numbers.peek() == EOF && 0 <= run.begin &&
                   run.begin < run.end,
               "{}: runs holds '{}', expected begin-end", where, word);
    runs_.push_back(run);
  }
}

void LayoutRuns::add(const ParameterSet& set, int64_t begin, int64_t end) {
  for_each_part(set, begin, end, [&](int64_t place, int64_t, int64_t size) {
    if (!runs_.empty() && runs_.back().end == place) {
      runs_.back().end += size;
    } else {
      runs_.push_back({place, place + size});
    }
  });
}

std::string LayoutRuns::text() const {
  std::string text;
  for (const Run& run : runs_) text += fmt::format("{}{}-{}", text.empty() ? "" : " ", run.begin, run.end);
  return text;
}

void LayoutRuns::check_covers(int64_t size, const std::string& where) const {
  std::vector<Run> sorted = runs_;
  std::sort(sorted.begin(), sorted.end(), [](const Run& a, const Run& b) { return a.begin < b.begin; });
  int64_t covered = 0;
  for (const Run& run : sorted) {
    CMOE_CHECK(run.begin == covered, "{}: its files hold values up to {} and then from {} on, expected each once", where,
               covered, run.begin);
    covered = run.end;
  }
  CMOE_CHECK(covered == size, "{}: its files hold {} values, expected {}", where, covered, size);
}

void LayoutTargets::add(const ParameterSet& set, int64_t begin, int64_t end, const Tensor& to) {
  for_each_part(set, begin, end, [&](int64_t place, int64_t offset, int64_t size) {
    pieces_.push_back({place, place + size, to.data<float>() + (offset - begin)});
  });
}

void LayoutTargets::fill(const LayoutRuns& runs, const SafetensorsFile& file, const std::string& tensor) const {
  std::vector<Piece> pieces = pieces_;
  std::sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.begin < b.begin; });
  Tensor values;
  int64_t at = 0;  // of the run in the tensor
  for (const LayoutRuns::Run& run : runs.all()) {
    auto piece = std::upper_bound(pieces.begin(), pieces.end(), run.begin,
                                  [](int64_t begin, const Piece& candidate) { return begin < candidate.end; });
    for (; piece != pieces.end() && piece->begin < run.end; ++piece) {
      if (!values.raw()) {
        values = file.read(tensor, DType::f32);
        int64_t expected = 0;
        for (const LayoutRuns::Run& each : runs.all()) expected += each.end - each.begin;
        CMOE_CHECK(values.size() == expected, "{}: '{}' has {} values, its runs {}", file.name(), tensor, values.size(),
                   expected);
      }
      const int64_t from = std::max(run.begin, piece->begin), to = std::min(run.end, piece->end);
      std::memcpy(piece->to + (from - piece->begin), values.data<float>() + at + (from - run.begin),
                  static_cast<size_t>(to - from) * sizeof(float));
    }
    at += run.end - run.begin;
  }
}

}  // namespace cmoe
