#pragma once

#include <array>
#include <cstdint>

#include "train/parameters.h"

namespace cmoe {

enum class ScheduleKind : uint8_t { constant, cosine };

struct OptimizerOptions {
  std::array<double, 3> learning_rate{5.95e-5, 1e-3, 1e-3};  ///< by ParameterGroup; the first two are CMoE v3's
  double beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8;
  double weight_decay = 0;  ///< decoupled (AdamW); 0 is Adam
  double clip = 1.0;        ///< largest norm of the whole gradient; 0 for none
  ScheduleKind schedule = ScheduleKind::cosine;
  int64_t warmup_steps = 0;
};

/// The learning rates' factor at `step` (from 0) of `steps`: linear from 1 / (warmup + 1), then 1 or a half cosine down to 0.
double schedule_factor(const OptimizerOptions& options, int64_t step, int64_t steps);

/// Adam over a slice of the flat vector. State and arithmetic are f32; an element's update depends on it alone, so slices of
/// any size give the same values.
/// Source: Adam (arXiv:1412.6980), algorithm 1; decoupled decay (arXiv:1711.05101), algorithm 2.
class Adam {
 public:
  Adam(const OptimizerOptions& options, int64_t begin, int64_t end);

  /// Updates elements [begin, end) of `parameters.values()`.
  /// @param gradient  [end - begin], multiplied by `gradient_scale` (clipping). @param lr_factor  of schedule_factor().
  void step(const ParameterSet& parameters, const Tensor& gradient, double gradient_scale, double lr_factor);

  int64_t steps() const { return steps_; }
  void set_steps(int64_t steps) { steps_ = steps; }
  /// First and second moments [end - begin], for checkpoints.
  const Tensor& first() const { return first_; }
  const Tensor& second() const { return second_; }

 private:
  OptimizerOptions options_;
  int64_t begin_, end_, steps_ = 0;
  Tensor first_, second_;
};

}  // namespace cmoe
