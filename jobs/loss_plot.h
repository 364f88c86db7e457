#pragma once

#include <string>
#include <utility>
#include <vector>

namespace cmoe::jobs {

/// An SVG of loss against step: one line a step, dots where held-out text was scored. Points are (step, nats per token).
std::string loss_plot(const std::vector<std::pair<double, double>>& steps,
                      const std::vector<std::pair<double, double>>& held_out);

}  // namespace cmoe::jobs
