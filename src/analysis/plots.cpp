#include "analysis/plots.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace cmoe {
namespace {

constexpr const char* kColors[] = {"#1f77b4", "#d62728", "#2ca02c", "#9467bd"};

std::string frame(const std::string& name, double width, double height, const std::string& content) {
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{:.0f}\" height=\"{:.0f}\" font-family=\"sans-serif\" "
      "font-size=\"11\">"
      "<text x=\"2\" y=\"12\">{}</text>{}</svg>\n",
      width, height, escape_html(name), content);
}

// 0 blue, 0.5 white, 1 red.
std::string color(double share) {
  const double s = std::clamp(std::isfinite(share) ? share : 0.5, 0.0, 1.0);
  const int other = static_cast<int>(std::lround(255 * (1 - std::abs(2 * s - 1))));
  return s < 0.5 ? fmt::format("rgb({0},{0},255)", other) : fmt::format("rgb(255,{0},{0})", other);
}

}  // namespace

std::string escape_html(const std::string& text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      default:
        result += c;
    }
  }
  return result;
}

std::string heat_map(const std::string& name, const SquareMatrix& matrix, double low, double high) {
  const double cell = std::clamp(160.0 / static_cast<double>(std::max<int64_t>(matrix.n, 1)), 4.0, 20.0);
  std::string cells;
  for (int64_t i = 0; i < matrix.n; ++i) {
    for (int64_t j = 0; j < matrix.n; ++j) {
      cells += fmt::format(
          "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"{}\"><title>{}, {}: {:.3f}</title></rect>",
          static_cast<double>(j) * cell, 18 + static_cast<double>(i) * cell, cell, cell,
          color((matrix.at(i, j) - low) / (high - low)), i, j, matrix.at(i, j));
    }
  }
  const double side = cell * static_cast<double>(matrix.n);
  return frame(name, std::max(side, 170.0), 20 + side, cells);
}

std::string line_plot(const std::string& name, const std::vector<Curve>& curves) {
  constexpr double kWidth = 420, kHeight = 220, kLeft = 40, kRight = 10, kTop = 20, kBottom = 20;
  double low = 0, high = 1e-9;
  size_t layers = 2;
  for (const Curve& curve : curves) {
    layers = std::max(layers, curve.values.size());
    for (const double value : curve.values) {
      if (!std::isfinite(value)) continue;
      low = std::min(low, value);
      high = std::max(high, value);
    }
  }
  const auto x = [&](size_t layer) {
    return kLeft + static_cast<double>(layer) / static_cast<double>(layers - 1) * (kWidth - kLeft - kRight);
  };
  const auto y = [&](double value) { return kTop + (high - value) / (high - low) * (kHeight - kTop - kBottom); };
  std::string content;
  for (int i = 0; i <= 4; ++i) {
    const double value = low + (high - low) * i / 4;
    content += fmt::format(
        "<line x1=\"{0:.1f}\" y1=\"{2:.1f}\" x2=\"{1:.1f}\" y2=\"{2:.1f}\" stroke=\"#ddd\"/><text x=\"2\" "
        "y=\"{3:.1f}\">{4:.2f}</text>",
        kLeft, kWidth - kRight, y(value), y(value) + 4, value);
  }
  for (size_t c = 0; c < curves.size(); ++c) {
    const char* stroke = kColors[c % std::size(kColors)];
    content += fmt::format("<polyline fill=\"none\" stroke=\"{}\" points=\"", stroke);
    for (size_t l = 0; l < curves[c].values.size(); ++l) {
      if (std::isfinite(curves[c].values[l])) content += fmt::format("{:.1f},{:.1f} ", x(l), y(curves[c].values[l]));
    }
    content += fmt::format("\"/><text x=\"{:.0f}\" y=\"{:.0f}\" fill=\"{}\">{}</text>", kLeft + 5,
                           kTop + 14 + 13 * static_cast<double>(c), stroke, escape_html(curves[c].name));
  }
  content +=
      fmt::format("<text x=\"{:.0f}\" y=\"{:.0f}\">layer 0</text><text x=\"{:.0f}\" y=\"{:.0f}\" text-anchor=\"end\">{}</text>",
                  kLeft, kHeight - 5, kWidth - kRight, kHeight - 5, layers - 1);
  return frame(name, kWidth, kHeight, content);
}

std::string scatter(const std::string& name, const std::vector<std::array<double, 2>>& points, bool shared) {
  constexpr double kSide = 180, kMargin = 15;
  double largest = 1e-12;
  for (const auto& point : points) largest = std::max({largest, std::abs(point[0]), std::abs(point[1])});
  const auto place = [&](double value) { return kSide / 2 + value / largest * (kSide / 2 - kMargin); };
  std::string content;
  for (size_t i = 0; i < points.size(); ++i) {
    const bool is_shared = shared && i + 1 == points.size();
    content += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\" fill=\"{}\">{}</text>", place(points[i][0]),
                           18 + place(-points[i][1]), kColors[is_shared ? 1 : 0], is_shared ? "s" : std::to_string(i));
  }
  return frame(name, kSide, kSide + 20, content);
}

std::string routing_plot(const std::vector<std::string>& tokens, const std::vector<std::vector<std::vector<int32_t>>>& routing,
                         int64_t experts) {
  constexpr double kColumn = 14, kLine = 3, kGap = 4, kLeft = 50, kTop = 100;
  std::string content;
  const double band = kLine * static_cast<double>(experts) + kGap;
  for (size_t t = 0; t < tokens.size(); ++t) {
    const double x = kLeft + kColumn * static_cast<double>(t);
    content += fmt::format("<text transform=\"translate({:.1f},{:.1f}) rotate(-60)\">{}</text>", x + kColumn / 2, kTop - 4,
                           escape_html(tokens[t]));
  }
  for (size_t l = 0; l < routing.size(); ++l) {
    const double top = kTop + band * static_cast<double>(l);
    content += fmt::format("<text x=\"2\" y=\"{:.1f}\">{}</text>", top + band / 2 + 3, l);
    for (size_t t = 0; t < routing[l].size(); ++t) {
      for (const int32_t e : routing[l][t])
        content += fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" fill=\"{}\"/>",
                               kLeft + kColumn * static_cast<double>(t), top + kLine * static_cast<double>(e), kColumn - 2,
                               kLine, kColors[static_cast<size_t>(e) % std::size(kColors)]);
    }
  }
  return frame("", kLeft + kColumn * static_cast<double>(tokens.size()) + 60, kTop + band * static_cast<double>(routing.size()),
               content);
}

}  // namespace cmoe
