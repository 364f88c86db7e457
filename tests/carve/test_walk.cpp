// Profile and carve of a whole model, in one process per rank: what one rank makes alone, all ranks together make too.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "carve/walk.h"
#include "model/fingerprint.h"
#include "model/transformer.h"
#include "small_layer.h"
#include "support/refusal.h"
#include "support/tiny_model.h"
#include "support/world.h"

namespace cmoe {
namespace {

constexpr int64_t kSequences = 3, kLength = 40;

std::vector<int32_t> tokens() {
  std::mt19937_64 random(5);
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < kSequences * kLength; ++i) ids.push_back(static_cast<int32_t>(3 + random() % 381));
  return ids;
}

// All ranks carve together; each layer on every rank afterwards, as the bytes of its lists and tensors.
std::map<int64_t, std::string> carve(const Recipe& recipe, const Profile& profile, Communicator& comm, CarveSummary* summary) {
  std::map<int64_t, std::string> mine, all;
  const Checkpoint checkpoint = open_checkpoint(fixture("tiny-llama"));
  *summary =
      carve_model(checkpoint, make_cpu_backend(), profile, {.recipe = recipe, .shape = {3, 3, 8}, .seed = 4}, comm,
                  [&](int64_t l, const CarvedLayer& layer, const DenseFfnTensors& dense) {
                    std::string& bytes = mine[l];
                    const auto lists = [&](const std::vector<int32_t>& neurons) {
                      bytes.append(reinterpret_cast<const char*>(neurons.data()), neurons.size() * 4);
                    };
                    lists(layer.shared);
                    for (const auto& expert : layer.experts) lists(expert);
                    for (const Tensor* t : {&layer.router_weight, &layer.router_bias, &layer.router_gate, &layer.router_up,
                                            &layer.down, &layer.compensation_bias, &layer.expert_bias, &dense.gate}) {
                      if (t->size() > 0) bytes += bytes_of(*t);
                    }
                    bytes += std::to_string(layer.threshold);
                  });
  for (int64_t l = 0; l < 3; ++l) {
    EXPECT_EQ(mine.contains(l), l % comm.size() == comm.rank()) << "layer " << l;
    all[l] = comm.broadcast_string(mine[l], static_cast<int>(l % comm.size()));
  }
  return all;
}

TEST(Walk, ProfileAndCarveAreThoseOfOneRankToTheBit) {
  Communicator& world = test_world();
  const auto alone = world.split(world.rank());
  const std::string folder = world.broadcast_string(TemporaryDirectory().path().string(), 0);
  if (world.rank() == 0) std::filesystem::create_directory(folder);
  world.barrier();
  const Checkpoint checkpoint = open_checkpoint(fixture("tiny-llama"));
  const std::string together = folder + "/together.h5", single = folder + "/alone" + std::to_string(world.rank()) + ".h5";
  run_profile(checkpoint, make_cpu_backend(), tokens(), kLength, {.k_act = 6}, {.model_hash = model_fingerprint(checkpoint)},
              world, together);
  run_profile(checkpoint, make_cpu_backend(), tokens(), kLength, {.k_act = 6}, {.model_hash = model_fingerprint(checkpoint)},
              *alone, single);
  const Profile many = Profile::open(together), one = Profile::open(single);
  EXPECT_EQ(many.tokens(), tokens());
  EXPECT_EQ(many.dense_nll(), one.dense_nll());
  for (int64_t l = 0; l < 3; ++l) {
    const ProfileLayer a = many.read_layer(l), b = one.read_layer(l);
    EXPECT_EQ(a.raw_markers, b.raw_markers);
    EXPECT_EQ(a.normalized_markers, b.normalized_markers);
    EXPECT_EQ(a.raw.marked, b.raw.marked);
    EXPECT_EQ(a.raw.mean, b.raw.mean);
    EXPECT_EQ(a.raw.second_moment, b.raw.second_moment);
    EXPECT_EQ(a.raw.mean_abs, b.raw.mean_abs);
    EXPECT_EQ(a.normalized_marked, b.normalized_marked);
  }
  for (const std::string& name : recipe_names()) {
    SCOPED_TRACE(name);
    CarveSummary summary, summary_alone;
    EXPECT_EQ(carve(recipe_by_name(name), many, world, &summary), carve(recipe_by_name(name), one, *alone, &summary_alone));
    EXPECT_EQ(summary.active_fraction, summary_alone.active_fraction);
    EXPECT_NEAR(summary.active_fraction, 0.75, 1e-9);
    EXPECT_EQ(std::isnan(summary.energy_before), recipe_by_name(name).energy_rounds == 0);
    if (recipe_by_name(name).energy_rounds > 0) {
      EXPECT_GT(summary.energy_after, summary.energy_before);
      EXPECT_LT(summary.energy_after, 1);
      EXPECT_EQ(summary.energy_after, summary_alone.energy_after);
    }
    EXPECT_EQ(std::isnan(summary.calibration_nll), recipe_by_name(name).calibration == Calibration::dense);
    if (!std::isnan(summary.calibration_nll)) {
      EXPECT_EQ(summary.calibration_nll, summary_alone.calibration_nll);
    }
  }
  world.barrier();
  if (world.rank() == 0) std::filesystem::remove_all(folder);
}

// A recipe that needs markers alone is carved from the file; the same choices with a forward pass must agree, as the layers see
// the dense model either way.
TEST(Walk, FromTheProfileAloneAndThroughAForwardPassAgree) {
  const auto alone = test_world().split(test_world().rank());
  const TemporaryDirectory folder;
  const Checkpoint checkpoint = open_checkpoint(fixture("tiny-llama"));
  run_profile(checkpoint, make_cpu_backend(), tokens(), kLength, {.k_act = 6}, {.model_hash = model_fingerprint(checkpoint)},
              *alone, folder / "p.h5");
  const Profile profile = Profile::open(folder / "p.h5");
  std::map<int64_t, CarvedLayer> from_file, walked;
  const auto into = [](std::map<int64_t, CarvedLayer>& layers) {
    return [&](int64_t l, const CarvedLayer& layer, const DenseFfnTensors&) { layers[l] = layer; };
  };
  Recipe recipe = recipe_by_name("paper");
  ASSERT_TRUE(recipe.from_profile_alone());
  carve_model(checkpoint, make_cpu_backend(), profile, {.recipe = recipe, .shape = {3, 3, 8}}, *alone, into(from_file));
  recipe.compensation = Compensation::mean;
  ASSERT_FALSE(recipe.from_profile_alone());
  carve_model(checkpoint, make_cpu_backend(), profile, {.recipe = recipe, .shape = {3, 3, 8}}, *alone, into(walked));
  for (int64_t l = 0; l < 3; ++l) {
    EXPECT_EQ(from_file[l].shared, walked[l].shared);
    EXPECT_EQ(from_file[l].experts, walked[l].experts);
    EXPECT_EQ(bytes_of(from_file[l].router_gate), bytes_of(walked[l].router_gate));
  }
}

// The summary's loss is that of the carved model as inference runs it: with everything active, the dense model's.
TEST(Walk, WithEveryExpertActiveTheCalibrationLossIsTheDenseOne) {
  const auto alone = test_world().split(test_world().rank());
  const TemporaryDirectory folder;
  const Checkpoint checkpoint = open_checkpoint(fixture("tiny-llama"));
  run_profile(checkpoint, make_cpu_backend(), tokens(), kLength, {.k_act = 6}, {.model_hash = model_fingerprint(checkpoint)},
              *alone, folder / "p.h5");
  const Profile profile = Profile::open(folder / "p.h5");
  const auto ignore = [](int64_t, const CarvedLayer&, const DenseFfnTensors&) {};
  const auto loss = [&](const ExpertShape& shape) {
    return carve_model(checkpoint, make_cpu_backend(), profile, {.recipe = recipe_by_name("authors"), .shape = shape}, *alone,
                       ignore)
        .calibration_nll;
  };
  EXPECT_NEAR(loss({3, 5, 8}), profile.dense_nll(), 1e-5);
  EXPECT_GT(std::abs(loss({1, 1, 8}) - profile.dense_nll()), 1e-3);
}

}  // namespace
}  // namespace cmoe
