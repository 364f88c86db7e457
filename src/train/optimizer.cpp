#include "train/optimizer.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace cmoe {

double schedule_factor(const OptimizerOptions& options, int64_t step, int64_t steps) {
  const int64_t warmup = options.warmup_steps;
  if (step < warmup) return static_cast<double>(step + 1) / static_cast<double>(warmup + 1);
  if (options.schedule == ScheduleKind::constant) return 1;
  const double progress = static_cast<double>(step - warmup) / static_cast<double>(std::max<int64_t>(1, steps - warmup));
  return 0.5 * (1 + std::cos(std::numbers::pi * progress));
}

Adam::Adam(const OptimizerOptions& options, int64_t begin, int64_t end)
    : options_(options),
      begin_(begin),
      end_(end),
      first_(Tensor::zeros(DType::f32, {end - begin})),
      second_(Tensor::zeros(DType::f32, {end - begin})) {}

// m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,  w -= lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay w)
void Adam::step(const ParameterSet& parameters, const Tensor& gradient, double gradient_scale, double lr_factor) {
  ++steps_;
  const auto t = static_cast<double>(steps_);
  const auto b1 = static_cast<float>(options_.beta1), b2 = static_cast<float>(options_.beta2);
  const auto scale = static_cast<float>(gradient_scale), epsilon = static_cast<float>(options_.epsilon);
  const auto unbias1 = static_cast<float>(1 / (1 - std::pow(options_.beta1, t)));
  const auto unbias2 = static_cast<float>(1 / (1 - std::pow(options_.beta2, t)));
  float* values = parameters.values().data<float>();
  for (const Parameter& parameter : parameters.all()) {
    const int64_t from = std::max(begin_, parameter.offset), to = std::min(end_, parameter.offset + parameter.size);
    const double rate = options_.learning_rate[static_cast<size_t>(parameter.group)] * lr_factor;
    const auto lr = static_cast<float>(rate), decay = static_cast<float>(rate * options_.weight_decay);
    for (int64_t i = from; i < to; ++i) {
      const float g = gradient.data<float>()[i - begin_] * scale;
      float &m = first_.data<float>()[i - begin_], &v = second_.data<float>()[i - begin_];
      m = b1 * m + (1 - b1) * g;
      v = b2 * v + (1 - b2) * g * g;
      values[i] -= lr * (m * unbias1 / (std::sqrt(v * unbias2) + epsilon)) + decay * values[i];
    }
  }
}

}  // namespace cmoe
