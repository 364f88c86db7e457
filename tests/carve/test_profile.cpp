// Reading profile files: what is refused, and on what words.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "carve/profile.h"
#include "model/fingerprint.h"
#include "support/refusal.h"
#include "support/tiny_model.h"
#include "support/world.h"
#include "tensor/hdf5.h"

namespace cmoe {
namespace {

using ::testing::HasSubstr;

class ProfileFile : public ::testing::Test {
 protected:
  std::string path() const { return folder_ / "p.h5"; }

  // The head of a profile of 2 sequences of 3 tokens, with changes.
  void write(const std::function<void(H5File&)>& change) {
    H5File file = H5File::create(path());
    file.create_dataset("tokens", H5Type::i32, {2, 3});
    const std::vector<int32_t> tokens{1, 2, 3, 4, 5, 6};
    file.write<int32_t>("tokens", tokens, {0, 0}, {2, 3});
    file.set_attribute("/", "format", "cmoe-profile-1");
    file.set_attribute("/", "complete", int64_t{1});
    for (const char* key : {"layers", "neurons", "k_act", "ranks"}) file.set_attribute("/", key, int64_t{1});
    for (const char* key : {"dense_nll", "seconds"}) file.set_attribute("/", key, 1.5);
    for (const char* key : {"model", "model_hash", "datasets", "options", "version", "dtype"})
      file.set_attribute("/", key, key);
    change(file);
    file.close();
  }
  std::string message() const {
    return refusal([&] { Profile::open(path()); });
  }

  TemporaryDirectory folder_;
};

TEST_F(ProfileFile, ReadsItsHead) {
  write([](H5File&) {});
  const Profile profile = Profile::open(path());
  EXPECT_EQ(profile.sequences(), 2);
  EXPECT_EQ(profile.sequence_length(), 3);
  EXPECT_THAT(profile.tokens(), ::testing::ElementsAre(1, 2, 3, 4, 5, 6));
  EXPECT_EQ(profile.dense_nll(), 1.5);
  EXPECT_EQ(profile.provenance().model_hash, "model_hash");
}

TEST_F(ProfileFile, OfAnotherProgramIsRefused) {
  write([](H5File& file) { file.set_attribute("/", "format", "other-1"); });
  EXPECT_THAT(message(), HasSubstr("is not a profile of this program; expected one that cmoe profile wrote"));
  H5File::create(path()).close();
  EXPECT_THAT(message(), HasSubstr("is not a profile of this program"));
}

TEST_F(ProfileFile, WithoutTheMarkOfCompletionIsRefused) {
  H5File file = H5File::create(path());
  file.set_attribute("/", "format", "cmoe-profile-1");
  file.close();
  EXPECT_THAT(message(), HasSubstr("the profile was not finished; run cmoe profile again"));
}

TEST_F(ProfileFile, WithoutALayersStatisticsIsRefused) {
  write([](H5File&) {});
  const Profile profile = Profile::open(path());
  EXPECT_THAT(refusal([&] { profile.read_layer(0); }), HasSubstr("layers/0000/markers_raw"));
}

TEST_F(ProfileFile, OfAnotherShapeOrOtherWeightsIsRefused) {
  const Checkpoint model = open_checkpoint(fixture("tiny-llama"));
  write([](H5File&) {});
  EXPECT_THAT(refusal([&] { Profile::open(path()).check_model(model); }),
              HasSubstr("is of another model: 1 layers of 1 neurons, but " + fixture("tiny-llama") + " has 3 of 160"));
  write([](H5File& file) {
    file.set_attribute("/", "layers", int64_t{3});
    file.set_attribute("/", "neurons", int64_t{160});
  });
  EXPECT_THAT(refusal([&] { Profile::open(path()).check_model(model); }), HasSubstr("is of another model with the same shape"));
  write([&](H5File& file) {
    file.set_attribute("/", "layers", int64_t{3});
    file.set_attribute("/", "neurons", int64_t{160});
    file.set_attribute("/", "model_hash", model_fingerprint(model));
  });
  EXPECT_NO_THROW(Profile::open(path()).check_model(model));
}

}  // namespace
}  // namespace cmoe
