#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "carve/recipe.h"
#include "support/refusal.h"

namespace cmoe {
namespace {

using ::testing::HasSubstr;

TEST(ExpertShape, ReadsSharedActiveAndExperts) {
  const ExpertShape shape = parse_expert_shape("S3A2E8", 1536);
  EXPECT_EQ(shape.shared, 3);
  EXPECT_EQ(shape.active, 2);
  EXPECT_EQ(shape.experts, 8);
  EXPECT_EQ(shape.routed(), 5);
  EXPECT_EQ(to_string(shape), "S3A2E8");
}

TEST(ExpertShape, RefusesWhatIsNotAShape) {
  for (const char* text : {"", "S3A3", "A3S3E8", "S3A3E8x", "SxAyEz"}) {
    EXPECT_THAT(refusal([&] { parse_expert_shape(text, 1536); }), HasSubstr("expected SxAyEz")) << text;
  }
  EXPECT_THAT(refusal([] { parse_expert_shape("S5A4E8", 1536); }),
              HasSubstr("5 shared and 4 active are more than the 8 experts"));
  EXPECT_THAT(refusal([] { parse_expert_shape("S0A0E8", 1536); }), HasSubstr("at least one expert must run"));
}

TEST(ExpertShape, OffersTheNearestNumbersThatDivide) {
  EXPECT_THAT(refusal([] { parse_expert_shape("S2A2E7", 1536); }),
              HasSubstr("7 experts do not divide the 1536 neurons of a layer; nearest that do: E6 or E8"));
}

TEST(Recipe, EveryNameGivesARecipeAndAnUnknownOneListsThem) {
  for (const std::string& name : recipe_names()) EXPECT_EQ(recipe_by_name(name).name, name);
  EXPECT_THAT(refusal([] { recipe_by_name("bset"); }), HasSubstr("expected one of best, paper, authors"));
  EXPECT_THAT(refusal([] { parse_partition("kmeans"); }),
              HasSubstr("partition: unknown value 'kmeans'; expected one of markers_l1"));
}

TEST(Recipe, OnlyMarkerRecipesWithDenseCalibrationNeedNoForward) {
  EXPECT_TRUE(recipe_by_name("paper").from_profile_alone());
  EXPECT_TRUE(recipe_by_name("random").from_profile_alone());
  for (const char* name : {"best", "authors", "static", "flap", "static-refit"})
    EXPECT_FALSE(recipe_by_name(name).from_profile_alone()) << name;
}

}  // namespace
}  // namespace cmoe
