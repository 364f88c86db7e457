// Which elements of a model a file holds, and where they go.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "support/files.h"
#include "tensor/safetensors_writer.h"
#include "train/layout_runs.h"

namespace cmoe {
namespace {

// Two sets that share a layout: places 0..2 b, 3..7 a, 8..10 b, 11 b.
struct TwoSets {
  TwoSets() : a(&layout), b(&layout) {
    b.add("b0", {3}, ParameterGroup::lora);
    a.add("a0", {5}, ParameterGroup::lora);
    b.add("b1", {3}, ParameterGroup::lora);
    b.add("b2", {1}, ParameterGroup::router);
  }
  ParameterLayout layout;
  ParameterSet a, b;
};

Tensor numbers(int64_t size) {
  Tensor tensor(DType::f32, {size});
  std::iota(tensor.span<float>().begin(), tensor.span<float>().end(), 0.0f);
  return tensor;
}

TEST(LayoutRuns, NamePlacesAndComeBack) {
  const TwoSets sets;
  EXPECT_EQ(sets.layout.size(), 12);
  LayoutRuns runs;
  runs.add(sets.b, 1, 7);
  EXPECT_EQ(runs.text(), "1-3 8-12");
  runs.add(sets.a, 0, 2);
  EXPECT_EQ(runs.text(), "1-3 8-12 3-5");
  EXPECT_EQ(LayoutRuns(runs.text(), "file").text(), runs.text());
  EXPECT_EQ(LayoutRuns("", "file").all().size(), 0u);
}

TEST(LayoutRuns, TargetsTakeWhatIsTheirs) {
  const TwoSets sets;
  const TempFolder folder;
  const std::filesystem::path path = folder / "x.safetensors";
  LayoutRuns runs;
  runs.add(sets.b, 1, 7);
  runs.add(sets.a, 0, 5);
  write_bytes(path, safetensors_bytes({{"values", numbers(11)}}, {}));
  const SafetensorsFile file(path.string());
  const Tensor a = Tensor::zeros(DType::f32, {3}), b = Tensor::zeros(DType::f32, {7});
  LayoutTargets targets;
  targets.add(sets.b, 0, 7, b);
  targets.add(sets.a, 2, 5, a);
  targets.fill(runs, file, "values");
  EXPECT_THAT(b.span<float>(), ::testing::ElementsAre(0, 0, 1, 2, 3, 4, 5));
  EXPECT_THAT(a.span<float>(), ::testing::ElementsAre(8, 9, 10));
}

TEST(LayoutRuns, Refusals) {
  for (const char* text : {"4", "4-", "4-4", "5-4", "-1-4", "1-2x", "a-b"}) {
    expect_error([&] { LayoutRuns(text, "state.safetensors"); },
                 fmt::format("state.safetensors: runs holds '{}', expected begin-end", text));
  }
  expect_error([] { LayoutRuns("4-8 0-3", "f").check_covers(8, "m"); },
               "m: its files hold values up to 3 and then from 4 on, expected each once");
  expect_error([] { LayoutRuns("0-4 3-8", "f").check_covers(8, "m"); }, "up to 4 and then from 3 on");
  expect_error([] { LayoutRuns("0-4 4-7", "f").check_covers(8, "m"); }, "m: its files hold 7 values, expected 8");
  EXPECT_NO_THROW(LayoutRuns("4-8 0-4", "f").check_covers(8, "m"));

  const TwoSets sets;
  const TempFolder folder;
  const std::filesystem::path path = folder / "x.safetensors";
  write_bytes(path, safetensors_bytes({{"values", numbers(4)}}, {}));
  const SafetensorsFile file(path.string());
  const Tensor a = Tensor::zeros(DType::f32, {5});
  LayoutTargets targets;
  targets.add(sets.a, 0, 5, a);
  expect_error([&] { targets.fill(LayoutRuns("3-8", "f"), file, "values"); }, "'values' has 4 values, its runs 5");
}

}  // namespace
}  // namespace cmoe
