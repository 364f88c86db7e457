#pragma once

#include <array>
#include <string>
#include <vector>

#include "analysis/measures.h"

namespace cmoe {

// SVG elements for a page; names are plain text.

/// Text with the characters that HTML reads otherwise written as entities.
std::string escape_html(const std::string& text);

/// Values from `low` (blue) over the middle (white) to `high` (red), row 0 on top; each cell tells its value.
std::string heat_map(const std::string& name, const SquareMatrix& matrix, double low, double high);

struct Curve {
  std::string name;
  std::vector<double> values;  ///< by layer; values that are not finite are left out
};
std::string line_plot(const std::string& name, const std::vector<Curve>& curves);

/// Numbered points; the last one is the shared expert ("s") where there is one.
std::string scatter(const std::string& name, const std::vector<std::array<double, 2>>& points, bool shared);

/// One column a token, one band a layer, one line of it an expert: filled where the token takes it.
std::string routing_plot(const std::vector<std::string>& tokens, const std::vector<std::vector<std::vector<int32_t>>>& routing,
                         int64_t experts);

}  // namespace cmoe
