#include "analysis/linear_assignment.h"

#include <limits>

#include "base/error.h"

namespace cmoe {

std::vector<int32_t> assign_rows(const Tensor& gain) {
  const auto n = static_cast<size_t>(gain.dim(0));
  CMOE_CHECK(gain.dim(0) == gain.dim(1), "assignment: a matrix of {}; expected a square one", to_string(gain.shape()));
  constexpr size_t kNone = std::numeric_limits<size_t>::max();
  // Costs are -gain; row and column potentials keep every reduced cost at or above zero.
  std::vector<double> row_potential(n, 0), column_potential(n, 0), distance(n);
  std::vector<size_t> row_of(n, kNone), before(n);
  std::vector<char> settled(n);
  for (size_t start = 0; start < n; ++start) {
    // The cheapest alternating path from row `start` to a free column (Dijkstra over reduced costs).
    std::fill(distance.begin(), distance.end(), std::numeric_limits<double>::infinity());
    std::fill(settled.begin(), settled.end(), 0);
    size_t row = start, from = kNone, free_column = kNone;
    double length = 0;
    std::vector<size_t> path;  // columns settled, in their order
    while (free_column == kNone) {
      const float* gains = gain.row<float>(static_cast<int64_t>(row));
      size_t nearest = kNone;
      for (size_t column = 0; column < n; ++column) {
        if (settled[column]) continue;
        const double through = length - gains[column] - row_potential[row] - column_potential[column];
        if (through < distance[column]) {
          distance[column] = through;
          before[column] = from;
        }
        if (nearest == kNone || distance[column] < distance[nearest]) nearest = column;
      }
      length = distance[nearest];
      settled[nearest] = 1;
      path.push_back(nearest);
      from = nearest;
      if (row_of[nearest] == kNone) {
        free_column = nearest;
      } else {
        row = row_of[nearest];
      }
    }
    row_potential[start] += length;
    for (const size_t column : path) {
      if (row_of[column] != kNone) row_potential[row_of[column]] += length - distance[column];
      column_potential[column] -= length - distance[column];
    }
    // Along the path every row moves to the next column.
    for (size_t column = free_column; column != kNone;) {
      const size_t previous = before[column];
      row_of[column] = previous == kNone ? start : row_of[previous];
      column = previous;
    }
  }
  std::vector<int32_t> column_of(n);
  for (size_t column = 0; column < n; ++column) column_of[row_of[column]] = static_cast<int32_t>(column);
  return column_of;
}

}  // namespace cmoe
