#include "jobs/loss_plot.h"

#include <fmt/format.h>

#include <algorithm>

namespace cmoe::jobs {

std::string loss_plot(const std::vector<std::pair<double, double>>& steps,
                      const std::vector<std::pair<double, double>>& held_out) {
  constexpr double kWidth = 720, kHeight = 360, kLeft = 60, kBottom = 30, kMargin = 15;
  double last = 1, low = 1e300, high = -1e300;
  for (const auto* points : {&steps, &held_out}) {
    for (const auto& [step, loss] : *points) {
      last = std::max(last, step);
      low = std::min(low, loss);
      high = std::max(high, loss);
    }
  }
  if (low > high) low = 0, high = 1;
  if (high - low < 1e-6) high = low + 1e-6;
  const auto x = [&](double step) { return kLeft + step / last * (kWidth - kLeft - kMargin); };
  const auto y = [&](double loss) { return kMargin + (high - loss) / (high - low) * (kHeight - kMargin - kBottom); };

  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" font-family=\"sans-serif\" font-size=\"11\">\n"
      "<rect width=\"{0}\" height=\"{1}\" fill=\"white\"/>\n",
      kWidth, kHeight);
  for (int i = 0; i <= 4; ++i) {
    const double loss = low + (high - low) * i / 4, step = last * i / 4;
    svg += fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"#ddd\"/>\n", kLeft, y(loss),
                       kWidth - kMargin, y(loss));
    svg += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"end\">{:.3f}</text>\n", kLeft - 5, y(loss) + 4, loss);
    svg += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"middle\">{:.0f}</text>\n", x(step), kHeight - 10, step);
  }
  svg += "<polyline fill=\"none\" stroke=\"#1f77b4\" points=\"";
  for (const auto& [step, loss] : steps) svg += fmt::format("{:.1f},{:.1f} ", x(step), y(loss));
  svg += "\"/>\n";
  for (const auto& [step, loss] : held_out)
    svg += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"#d62728\"/>\n", x(step), y(loss));
  return svg + "</svg>\n";
}

}  // namespace cmoe::jobs
