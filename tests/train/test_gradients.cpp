// Gradients of whole models: against torch autograd, and of every kind of parameter against differences.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/parallel.h"
#include "tensor/safetensors.h"
#include "train/support.h"

namespace cmoe {
namespace {

const std::string kGolden = std::string(CMOE_SOURCE_DIR) + "/tests/train/fixtures/";

struct Case {
  const char *name, *model, *teacher;
  TrainedModel::LossOptions loss;
  double regression;
};

void PrintTo(const Case& one, std::ostream* out) { *out << one.name; }

const Case kCases[] = {
    {"llama", "tiny-llama", nullptr, {}, 0},
    {"healed", "tiny-cmoe-healed", nullptr, {}, 0},
    {"authors", "tiny-cmoe-authors", nullptr, {}, 0},
    {"threshold", "tiny-cmoe-threshold", "tiny-cmoe-static", {.nll = 0.5, .kl = 0.3, .hidden = 0.2, .temperature = 2}, 0.05},
};

TrainedParts golden_parts(const Case& one) {
  TrainedParts parts{.rank = 2, .alpha = 6};
  parts.router_bias = false;
  parts.router_weights = std::string(one.model) != "tiny-llama";
  parts.router_regression = one.regression;
  return parts;
}

void load_values(const SafetensorsFile& golden, TrainedModel& model) {
  for_each_parameter(model, model.make_gradients(), [&](const Parameter& parameter, const Tensor& to, const Tensor&) {
    const Tensor value = golden.read("value." + parameter.name, DType::f32);
    ASSERT_EQ(value.shape(), to.shape()) << parameter.name;
    std::memcpy(to.raw(), value.raw(), static_cast<size_t>(value.bytes()));
  });
  model.pack();
}

class Golden : public ::testing::TestWithParam<Case> {};

TEST_P(Golden, LossAndGradientsEqualTorch) {
  const Case& one = GetParam();
  const SafetensorsFile golden(kGolden + one.name + std::string(".safetensors"));
  TinyModel tiny(one.model, golden_parts(one));
  TrainedModel& model = tiny.trained;
  load_values(golden, model);
  EXPECT_EQ(2 * model.layout().all().size() + 1, golden.entries().size());
  std::unique_ptr<Transformer> teacher;
  if (one.teacher)
    teacher = std::make_unique<Transformer>(open_checkpoint(kModels + one.teacher), make_cpu_backend(), DType::f32);

  const std::vector<int32_t> ids = golden_ids(one.model);
  const auto targets = static_cast<double>(ids.size() - 1);
  const Segments whole = whole_sequence(static_cast<int64_t>(ids.size()));
  const Tensor expected_loss = golden.read("loss", DType::f32);
  for (bool recompute : {false, true}) {
    const TrainedModel::Gradients gradient = model.make_gradients();
    TrainedModel::Routed routed;
    TrainedModel::LossOptions options = one.loss;
    options.recompute = recompute;
    const TrainedModel::Teacher taught{.model = teacher.get(), .logits = teacher != nullptr, .hidden = teacher != nullptr};
    const SequenceLoss loss = model.add_gradient(ids, whole, options, taught, 1 / targets, {}, gradient, routed);
    EXPECT_NEAR(loss.nll / targets, expected_loss.data<float>()[0], 2e-5);
    EXPECT_NEAR(loss.kl / targets, expected_loss.data<float>()[1], 2e-5);
    EXPECT_NEAR(loss.hidden / targets, expected_loss.data<float>()[2], 2e-5);
    for_each_parameter(model, gradient, [&](const Parameter& parameter, const Tensor&, const Tensor& found) {
      const std::string& name = parameter.name;
      const Tensor expected = golden.read("gradient." + name, DType::f32);
      double difference = 0, norm = 0;
      for (int64_t j = 0; j < expected.size(); ++j) {
        const double e = static_cast<double>(expected.data<float>()[j]);
        difference += std::pow(static_cast<double>(found.data<float>()[j]) - e, 2);
        norm += e * e;
      }
      // torch sums in another order: f32 rounding through a few layers.
      EXPECT_LE(std::sqrt(difference), 1e-4 * std::sqrt(norm) + 1e-7) << name << ", norm " << std::sqrt(norm);
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Golden, ::testing::ValuesIn(kCases), [](const auto& one) { return one.param.name; });

// The loss along a random direction in all parameters at once, with dropout: its mask must be the same in both passes.
TEST(Gradients, AgreeWithDifferencesUnderDropoutAndPacking) {
  TrainedParts parts{.rank = 3, .expert_rank = 1, .alpha = 2, .rslora = true, .router_bias = false, .router_weights = true};
  TinyModel tiny("tiny-cmoe-healed", parts);
  TrainedModel& model = tiny.trained;
  randomise(model, 5);
  const std::vector<int32_t> ids = golden_ids("tiny-cmoe-healed");
  Segments packed{.rows = {7, 1, 24}, .positions = {}};
  for (int64_t rows : packed.rows) {
    for (int64_t i = 0; i < rows; ++i) packed.positions.push_back(static_cast<int32_t>(i));
  }
  std::vector<int64_t> loads;
  const auto loss = [&](const TrainedModel::Gradients& gradient) {
    TrainedModel::Routed routed;
    const SequenceLoss sums = model.add_gradient(ids, packed, {}, {}, 1.0 / 29, {0.25f, {11}}, gradient, routed);
    EXPECT_EQ(sums.targets, 29);
    if (loads.empty()) loads = routed.loads;
    EXPECT_EQ(routed.loads, loads) << "a token changed its experts, where the loss jumps; take another key";
    return sums.nll / 29;
  };
  const TrainedModel::Gradients gradient = model.make_gradients();
  loss(gradient);
  const TrainedModel::Gradients unused = model.make_gradients();
  for (ParameterGroup group : {ParameterGroup::lora, ParameterGroup::router_scale, ParameterGroup::router}) {
    double slope = 0, differences[2] = {};
    for (int sign : {1, -1}) {
      std::vector<std::pair<float*, float>> before;
      for_each_parameter(model, gradient, [&](const Parameter& parameter, const Tensor& value, const Tensor& of) {
        for (int64_t i = 0; i < parameter.size; ++i) {
          const double direction = (random_bits(9, static_cast<uint64_t>(parameter.place + i)) & 1) ? 1.0 : -1.0;
          if (parameter.group != group) continue;
          if (sign > 0) slope += direction * static_cast<double>(of.data<float>()[i]);
          float& moved = value.data<float>()[i];
          before.emplace_back(&moved, moved);
          moved += static_cast<float>(sign * 1e-3 * direction);
        }
      });
      model.pack();
      differences[sign > 0 ? 0 : 1] = loss(unused);
      for (const auto& [value, at] : before) *value = at;
    }
    const double expected = (differences[0] - differences[1]) / 2e-3;
    // f32 losses of size 6 carry 1e-6: 5e-4 in the quotient.
    EXPECT_NEAR(slope, expected, 2e-3 + 5e-3 * std::abs(expected)) << "group " << static_cast<int>(group);
  }
}

TEST(Gradients, PackedDocumentsEqualLoneOnes) {
  TinyModel tiny("tiny-cmoe-healed");
  randomise(tiny.trained, 3);
  const std::vector<int32_t> ids = golden_ids("tiny-cmoe-healed");
  const std::span<const int32_t> all(ids);
  Segments packed = whole_sequence(10);
  const Segments second = whole_sequence(22);
  packed.rows.push_back(22);
  packed.positions.insert(packed.positions.end(), second.positions.begin(), second.positions.end());
  const double together = tiny.trained.evaluate(ids, packed).nll;
  const double apart =
      tiny.trained.evaluate(all.first(10), whole_sequence(10)).nll + tiny.trained.evaluate(all.subspan(10), second).nll;
  EXPECT_NEAR(together, apart, 1e-9 * apart);
}

TEST(Gradients, DocumentsEndAtTheirToken) {
  const std::vector<int32_t> ids{5, 2, 2, 7, 8};
  const Segments segments = split_documents(ids, 2);
  EXPECT_THAT(segments.rows, ::testing::ElementsAre(2, 1, 2));
  EXPECT_THAT(segments.positions, ::testing::ElementsAre(0, 1, 0, 0, 1));
}

TEST(Gradients, FreshAdaptersLeaveTheModelAsItIs) {
  for (const char* name : {"tiny-llama", "tiny-cmoe-healed", "tiny-cmoe-threshold", "tiny-cmoe-static", "tiny-cmoe-authors"}) {
    SCOPED_TRACE(name);
    TinyModel tiny(name);
    const std::vector<int32_t> ids = golden_ids(name);
    KvCache cache(tiny.base->config(), static_cast<int64_t>(ids.size()));
    const SequenceStep step{.tokens = ids, .cache = &cache};
    const Tensor expected = tiny.base->forward(Batch(std::span(&step, 1)));
    const Tensor found = tiny.trained.hidden_states(ids, whole_sequence(static_cast<int64_t>(ids.size())));
    for (int64_t i = 0; i < found.size(); ++i) ASSERT_EQ(found.data<float>()[i], expected.data<float>()[i]) << i;
  }
}

TEST(Gradients, ThreadsDoNotReachTheBits) {
  TinyModel tiny("tiny-cmoe-healed");
  randomise(tiny.trained, 3);
  const std::vector<int32_t> ids = golden_ids("tiny-cmoe-healed");
  const auto run = [&](int threads) {
    set_num_threads(threads);
    TrainedModel::Gradients gradient = tiny.trained.make_gradients();
    TrainedModel::Routed routed;
    tiny.trained.add_gradient(ids, whole_sequence(32), {}, {}, 1.0 / 31, {0.1f, {3}}, gradient, routed);
    set_num_threads(1);
    return gradient;
  };
  const TrainedModel::Gradients one = run(1), three = run(3);
  EXPECT_EQ(std::memcmp(one.parameters.raw(), three.parameters.raw(), static_cast<size_t>(one.parameters.bytes())), 0);
  EXPECT_EQ(std::memcmp(one.experts[0].raw(), three.experts[0].raw(), static_cast<size_t>(one.experts[0].bytes())), 0);
}

TEST(Gradients, NotFiniteNamesTheLayer) {
  TinyModel tiny("tiny-cmoe-healed");
  const auto& parameters = tiny.trained.parameters();
  for (size_t i = 0; i < parameters.all().size(); ++i) {
    if (parameters.all()[i].name == "model.layers.1.self_attn.v_proj.lora_B")
      parameters.value(static_cast<int64_t>(i)).data<float>()[3] = NAN;
  }
  tiny.trained.pack();
  const std::vector<int32_t> ids = golden_ids("tiny-cmoe-healed");
  const TrainedModel::Gradients gradient = tiny.trained.make_gradients();
  TrainedModel::Routed routed;
  try {
    tiny.trained.add_gradient(ids, whole_sequence(32), {}, {}, 1, {}, gradient, routed);
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("layer 1: its attention gave a value that is not finite"));
  }
}

TEST(Gradients, RefuseWhatCannotBeTrained) {
  const auto message = [](const char* name, const TrainedParts& parts) -> std::string {
    try {
      TinyModel tiny(name, parts);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_THAT(message("tiny-llama", {.lora_targets = {"w1"}}), ::testing::HasSubstr("'w1' is unknown; expected some of q, k"));
  EXPECT_THAT(message("tiny-llama", {.lora_targets = {}}), ::testing::HasSubstr("nothing to train"));
  EXPECT_THAT(message("tiny-llama", {.router_weights = true}), ::testing::HasSubstr("has no routed experts"));
  EXPECT_THAT(message("tiny-cmoe-healed", {.router_weights = true, .router_regression = 0.1}),
              ::testing::HasSubstr("use --train-router on a linear router"));
}

}  // namespace
}  // namespace cmoe
