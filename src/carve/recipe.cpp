#include "carve/recipe.h"

#include <array>
#include <charconv>
#include <cstdlib>
#include <span>

#include "base/error.h"

namespace cmoe {
namespace {

constexpr std::array<std::string_view, 2> kMarker = {"raw", "normalized"};
constexpr std::array<std::string_view, 5> kScore = {"activation_rate", "mass", "variance", "index", "random"};
constexpr std::array<std::string_view, 2> kRepresentative = {"nearest", "highest_rate"};
constexpr std::array<std::string_view, 6> kPartition = {"markers_l1", "markers_squared_l2", "markers_l2",
                                                        "cosine",     "contiguous",         "random"};
constexpr std::array<std::string_view, 3> kCompensation = {"none", "mean", "refit"};
constexpr std::array<std::string_view, 2> kCalibration = {"dense", "carved"};
constexpr std::array<std::string_view, 3> kRouter = {"linear", "analytical", "authors"};
constexpr std::array<std::string_view, 2> kSelector = {"topk", "threshold"};

int parse(std::string_view what, std::span<const std::string_view> names, const std::string& text) {
  for (size_t i = 0; i < names.size(); ++i) {
    if (names[i] == text) return static_cast<int>(i);
  }
  fail("{}: unknown value '{}'; expected one of {}", what, text, fmt::join(names, ", "));
}

// The divisor of f nearest to `wanted` that is at least `least`.
int64_t nearest_divisor(int64_t f, int64_t wanted, int64_t least, bool above) {
  for (int64_t n = wanted; n >= least && n <= f; n += above ? 1 : -1) {
    if (f % n == 0) return n;
  }
  return 0;
}

}  // namespace

ExpertShape parse_expert_shape(const std::string& text, int64_t intermediate_size) {
  ExpertShape shape;
  const char* at = text.c_str();
  const char* end = at + text.size();
  const auto number = [&](char letter, int64_t& value) {
    if (at == end || (*at | 0x20) != letter) return false;
    const auto result = std::from_chars(at + 1, end, value);
    at = result.ptr;
    return result.ec == std::errc();
  };
  if (!number('s', shape.shared) || !number('a', shape.active) || !number('e', shape.experts) || at != end) {
    fail("experts '{}': expected SxAyEz, x shared and y active routed of z experts in all, such as S3A3E8", text);
  }
  CMOE_CHECK(shape.experts >= 1 && shape.shared >= 0 && shape.active >= 0 && shape.shared + shape.active >= 1,
             "experts '{}': at least one expert must run", text);
  CMOE_CHECK(shape.shared + shape.active <= shape.experts,
             "experts '{}': {} shared and {} active are more than the {} experts there are", text, shape.shared, shape.active,
             shape.experts);
  if (intermediate_size % shape.experts != 0) {
    const int64_t least = std::max<int64_t>(shape.shared + shape.active, 1);
    const int64_t below = nearest_divisor(intermediate_size, shape.experts, least, false);
    const int64_t above = nearest_divisor(intermediate_size, shape.experts, least, true);
    std::string choices = below ? fmt::format("E{}", below) : "";
    if (above) choices += fmt::format("{}E{}", below ? " or " : "", above);
    fail("experts '{}': {} experts do not divide the {} neurons of a layer; nearest that do: {}", text, shape.experts,
         intermediate_size, choices);
  }
  return shape;
}

std::string to_string(const ExpertShape& shape) { return fmt::format("S{}A{}E{}", shape.shared, shape.active, shape.experts); }

bool Recipe::from_profile_alone() const {
  return calibration == Calibration::dense && compensation == Compensation::none && partition != Partition::cosine &&
         energy_rounds == 0 && (!routed || (router != RouterKind::linear && selector == Selector::topk));
}

bool Recipe::needs_markers() const {
  const bool clusters = routed && (partition == Partition::markers_l1 || partition == Partition::markers_squared_l2 ||
                                   partition == Partition::markers_l2);
  return score == Score::activation_rate || clusters || (routed && representative == Representative::highest_rate);
}

bool Recipe::needs_moments() const {
  return score == Score::mass || score == Score::variance || (routed && partition == Partition::cosine);
}

std::string Recipe::describe() const {
  std::string text;
  const auto line = [&](std::string_view key, auto value) { text += fmt::format("{} = {}\n", key, value); };
  line("recipe", name);
  line("marker", name_of(marker));
  line("score", name_of(score));
  line("partition", name_of(partition));
  line("iterations", iterations);
  line("energy-rounds", energy_rounds);
  line("representative", name_of(representative));
  line("routed", routed ? "yes" : "no");
  line("router", name_of(router));
  line("selector", name_of(selector));
  line("router-lambda", router_lambda);
  line("compensation", name_of(compensation));
  line("refit-lambda", refit_lambda);
  line("calibration", name_of(calibration));
  return text;
}

Recipe recipe_by_name(const std::string& name) {
  Recipe best;
  Recipe paper{.name = "paper",
               .marker = Marker::raw,
               .score = Score::activation_rate,
               .partition = Partition::markers_l2,
               .iterations = 6,
               .energy_rounds = 0,
               .router = RouterKind::analytical,
               .selector = Selector::topk,
               .compensation = Compensation::none,
               .calibration = Calibration::dense};
  Recipe recipe = best;
  if (name == "best") return best;
  if (name == "paper") return paper;
  recipe = paper;
  recipe.name = name;
  if (name == "authors") {
    recipe.marker = Marker::normalized;
    recipe.partition = Partition::markers_l1;
    recipe.iterations = 1;
    recipe.router = RouterKind::authors;
    recipe.calibration = Calibration::carved;
  } else if (name == "random" || name == "contiguous") {
    recipe.score = name == "random" ? Score::random : Score::index;
    recipe.partition = name == "random" ? Partition::random : Partition::contiguous;
  } else if (name == "static" || name == "flap" || name == "static-refit") {
    recipe.routed = false;
    recipe.calibration = Calibration::carved;
    if (name != "static") recipe.score = Score::variance;
    if (name == "flap") recipe.compensation = Compensation::mean;
    if (name == "static-refit") {
      recipe.compensation = Compensation::refit;
      recipe.refit_lambda = 1e-2;  // where every token runs the same neurons, the ridge of `best` costs at 50 %
    }
  } else {
    fail("recipe '{}': unknown; expected one of {}", name, fmt::join(recipe_names(), ", "));
  }
  return recipe;
}

std::vector<std::string> recipe_names() {
  return {"best", "paper", "authors", "random", "contiguous", "static", "flap", "static-refit"};
}

Marker parse_marker(const std::string& text) { return static_cast<Marker>(parse("marker", kMarker, text)); }
Score parse_score(const std::string& text) { return static_cast<Score>(parse("score", kScore, text)); }
Representative parse_representative(const std::string& text) {
  return static_cast<Representative>(parse("representative", kRepresentative, text));
}
Partition parse_partition(const std::string& text) { return static_cast<Partition>(parse("partition", kPartition, text)); }
Compensation parse_compensation(const std::string& text) {
  return static_cast<Compensation>(parse("compensation", kCompensation, text));
}
Calibration parse_calibration(const std::string& text) {
  return static_cast<Calibration>(parse("calibration", kCalibration, text));
}
RouterKind parse_router_kind(const std::string& text) { return static_cast<RouterKind>(parse("router", kRouter, text)); }
Selector parse_selector(const std::string& text) { return static_cast<Selector>(parse("selector", kSelector, text)); }
std::string_view name_of(Marker value) { return kMarker[static_cast<size_t>(value)]; }
std::string_view name_of(Score value) { return kScore[static_cast<size_t>(value)]; }
std::string_view name_of(Representative value) { return kRepresentative[static_cast<size_t>(value)]; }
std::string_view name_of(Partition value) { return kPartition[static_cast<size_t>(value)]; }
std::string_view name_of(Compensation value) { return kCompensation[static_cast<size_t>(value)]; }
std::string_view name_of(Calibration value) { return kCalibration[static_cast<size_t>(value)]; }
std::string_view name_of(RouterKind value) { return kRouter[static_cast<size_t>(value)]; }
std::string_view name_of(Selector value) { return kSelector[static_cast<size_t>(value)]; }

}  // namespace cmoe
