#pragma once

#include <string>
#include <vector>

#include "tensor/safetensors.h"
#include "train/parameters.h"

namespace cmoe {

/// Which elements of a model's layout a flat vector holds: runs of them, in the vector's order.
class LayoutRuns {
 public:
  struct Run {
    int64_t begin, end;
  };

  LayoutRuns() = default;
  /// From text(). @param where  the file's name. @throws Error on other text.
  LayoutRuns(const std::string& text, const std::string& where);

  /// Appends elements [begin, end) of the set's flat vector.
  void add(const ParameterSet& set, int64_t begin, int64_t end);
  void append(const LayoutRuns& runs) { runs_.insert(runs_.end(), runs.runs_.begin(), runs.runs_.end()); }

  const std::vector<Run>& all() const { return runs_; }
  /// "0-4096 9000-9100".
  std::string text() const;
  /// @throws Error unless the runs are 0 .. size, each element once.
  void check_covers(int64_t size, const std::string& where) const;

 private:
  std::vector<Run> runs_;
};

/// Memory that is waiting for elements of the layout.
class LayoutTargets {
 public:
  /// Elements [begin, end) of the set's flat vector belong into `to` [end - begin], which must outlive this.
  void add(const ParameterSet& set, int64_t begin, int64_t end, const Tensor& to);
  /// Copies what is waited for from a file's tensor, which holds `runs`; reads nothing when that is nothing.
  /// @throws Error when the tensor has another size than the runs.
  void fill(const LayoutRuns& runs, const SafetensorsFile& file, const std::string& tensor) const;

 private:
  struct Piece {
    int64_t begin, end;  ///< in the layout
    float* to;
  };
  std::vector<Piece> pieces_;  // ascending within each set
};

}  // namespace cmoe
