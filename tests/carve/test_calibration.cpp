// The loss on the calibration tokens, where there are more of them than are computed.
#include <gtest/gtest.h>

#include "carve/calibration.h"
#include "model/checkpoint.h"
#include "support/world.h"

namespace cmoe {
namespace {

TEST(CalibrationShard, OfManyTokensTheLossIsThatOfEveryNth) {
  constexpr int64_t kSequences = 91, kLength = 101;  // 9,191 tokens: every second; rows of a sequence begin at odd places, too
  Communicator& world = test_world();
  const Transformer model(open_checkpoint(CMOE_SOURCE_DIR "/tests/model/fixtures/tiny-llama"), make_cpu_backend(), DType::f32);
  const int64_t d = model.config().hidden_size;
  std::vector<int32_t> tokens;
  Tensor x(DType::f32, {kSequences * kLength, d});
  uint32_t state = 1;
  const auto next = [&] { return state = state * 1664525u + 1013904223u; };
  for (int64_t i = 0; i < kSequences * kLength; ++i) tokens.push_back(static_cast<int32_t>(next() % 300));
  for (float& value : x.span<float>()) value = static_cast<float>(next() >> 8) * 0x1p-23f - 1.0f;

  const CalibrationShard shard(tokens, kLength, model.config(), world);
  const int64_t first = shard.first_sequence() * kLength;
  const double loss = shard.mean_nll(model, x.rows(first, first + shard.local_sequences() * kLength), world);

  std::vector<int32_t> targets(tokens.begin() + 1, tokens.end());
  targets.push_back(-1);
  const std::vector<double> nll = model.token_nll(model.final_norm(x), targets);
  double sum = 0;
  int64_t count = 0;
  for (int64_t i = 0; i < kSequences * kLength; ++i) {
    if (i % kLength % 2 != 0 || i % kLength == kLength - 1) continue;
    sum += nll[static_cast<size_t>(i)];
    ++count;
  }
  EXPECT_NEAR(loss, sum / static_cast<double>(count), 1e-6);
  // The same bits on every number of ranks.
  const auto alone = world.split(world.rank());
  EXPECT_EQ(loss, CalibrationShard(tokens, kLength, model.config(), *alone).mean_nll(model, x, *alone));
}

}  // namespace
}  // namespace cmoe
