#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "moe/router.h"

namespace cmoe {

/// S shared + A active of N experts, "S3A3E8".
struct ExpertShape {
  int64_t shared = 0;   ///< S
  int64_t active = 0;   ///< A routed experts per token (their mean with the threshold selector)
  int64_t experts = 0;  ///< N
  int64_t routed() const { return experts - shared; }
};

/// @throws Error when `text` is not SxAyEz with x + y <= z, or z does not divide `intermediate_size` (the message offers the
/// nearest z that does).
ExpertShape parse_expert_shape(const std::string& text, int64_t intermediate_size);
std::string to_string(const ExpertShape& shape);

/// What a token's markers are taken from.
///   raw:         h = silu(x Wg^T) * (x Wu^T)                           (paper)
///   normalized:  the same with x and all weight rows of unit length    (authors' code, `construct_moe`)
enum class Marker { raw, normalized };

/// Importance of a neuron; the highest S * m become the shared expert.
///   activation_rate: fraction of tokens that mark it (paper, mu_i)     mass: E[h_i^2] |w_d,i|^2
///   variance:        Var[h_i] |w_d,i|^2 (FLAP's fluctuation)           index: its position (for the contiguous baseline)
///   random:          from the seed
enum class Score { activation_rate, mass, variance, index, random };

/// How the other neurons are divided into experts of equal size.
///   markers_l1:              balanced k-means on marker columns by Hamming distance (authors' code)
///   markers_squared_l2:      by squared L2; markers_l2: by unsquared L2 (the paper's v3 text)
///   cosine:                  balanced k-means on the direction of |h_i| |w_d,i| over tokens
///   contiguous, random:      baselines
enum class Partition { markers_l1, markers_squared_l2, markers_l2, cosine, contiguous, random };

/// Which neuron of an expert an analytical router reads.
///   nearest: the one nearest to the cluster's mean (paper, step 4); on sparse markers that is one of the least active
///   highest_rate: the one that most tokens mark
enum class Representative { nearest, highest_rate };

/// What stands in for the experts that a token does not take.
///   none;  mean: each dropped expert adds its mean output;  refit: down-projections and a bias refit by ridge least squares
enum class Compensation { none, mean, refit };

/// What the next layer sees while carving: the dense layer's output, or the carved layer's (the authors' way).
enum class Calibration { dense, carved };

/// Every choice of the carve, each a named option; a recipe is a preset of them. docs/algorithm.md says where paper versions
/// and the authors' code differ.
struct Recipe {
  std::string name = "best";
  Marker marker = Marker::raw;
  Score score = Score::mass;
  Partition partition = Partition::cosine;
  int64_t iterations = 6;      ///< rounds of assignment at most
  int64_t energy_rounds = 12;  ///< rounds of refine_energy() after it at most; 0 for none
  Representative representative = Representative::nearest;
  bool routed = true;  ///< false: static, the S + A share of neurons kept and no router
  RouterKind router = RouterKind::linear;
  Selector selector = Selector::threshold;
  double router_lambda = 1e-3;  ///< ridge of the linear router, in units of the mean diagonal
  Compensation compensation = Compensation::refit;
  double refit_lambda = 0.2;  ///< ridge of the refit, in units of the mean diagonal
  Calibration calibration = Calibration::carved;

  /// Needs only what a profile file holds (markers and moments): no forward pass, layers independent.
  bool from_profile_alone() const;
  /// Looks at which neurons tokens mark.
  bool needs_markers() const;
  /// Looks at means and second moments of activations.
  bool needs_moments() const;
  /// key = value lines of every choice.
  std::string describe() const;
};

/// Presets: best, paper, authors, random, contiguous, static, flap, static-refit. @throws Error naming the valid ones.
Recipe recipe_by_name(const std::string& name);
std::vector<std::string> recipe_names();

// Enum <-> option text. parse_* throw an Error with the valid names.
Marker parse_marker(const std::string& text);
Score parse_score(const std::string& text);
Representative parse_representative(const std::string& text);
Partition parse_partition(const std::string& text);
Compensation parse_compensation(const std::string& text);
Calibration parse_calibration(const std::string& text);
RouterKind parse_router_kind(const std::string& text);
Selector parse_selector(const std::string& text);
std::string_view name_of(Marker value);
std::string_view name_of(Score value);
std::string_view name_of(Partition value);
std::string_view name_of(Representative value);
std::string_view name_of(Compensation value);
std::string_view name_of(Calibration value);
std::string_view name_of(RouterKind value);
std::string_view name_of(Selector value);

}  // namespace cmoe
