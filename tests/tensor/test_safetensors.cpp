#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "support/files.h"
#include "tensor/safetensors.h"
#include "tensor/safetensors_writer.h"

namespace cmoe {
namespace {

std::string file_of(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
}

std::string entry(const std::string& dtype, const std::string& shape, int64_t begin, int64_t end) {
  return fmt::format(R"({{"dtype":"{}","shape":{},"data_offsets":[{},{}]}})", dtype, shape, begin, end);
}

void expect_refused(const std::string& header, const std::string& data, const std::string& part) {
  const TempFolder folder;
  write_bytes(folder / "model.safetensors", file_of(header, data));
  expect_error([&] { SafetensorsFile(folder / "model.safetensors"); }, "model.safetensors", part);
}

TEST(Safetensors, WhatIsWrittenIsReadBack) {
  const TempFolder folder;
  Tensor a(DType::f32, {3, 5}), b(DType::f32, {7});
  for (int i = 0; i < 15; ++i) a.data<float>()[i] = std::sin(static_cast<float>(i));
  for (int i = 0; i < 7; ++i) b.data<float>()[i] = static_cast<float>(i - 3) / 4;
  std::string bytes;
  const auto sink = [&](const void* data, int64_t count, int64_t offset) {
    bytes.resize(std::max(bytes.size(), static_cast<size_t>(offset + count)));
    std::memcpy(bytes.data() + offset, data, static_cast<size_t>(count));
  };
  // Out of order; the narrow type is laid behind the wide one whatever its name.
  SafetensorsWriter writer({{"a.half", DType::f16, {7}},
                            {"b.bf16", DType::bf16, {3, 5}},
                            {"c", DType::f32, {3, 5}},
                            {"empty", DType::f32, {0, 4}},
                            {"scalar", DType::f32, {}}},
                           {{"format", "pt"}}, sink);
  writer.write("scalar", Tensor::zeros(DType::f32, {}));
  writer.write("c", a);
  writer.write("a.half", b);
  writer.write("empty", Tensor(DType::f32, {0, 4}));
  EXPECT_THROW(writer.finish(), Error);
  writer.write("b.bf16", a);
  writer.finish();
  EXPECT_EQ(static_cast<int64_t>(bytes.size()), writer.file_bytes());
  write_bytes(folder / "x.safetensors", bytes);

  const SafetensorsFile file(folder / "x.safetensors");
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.entry("c").offset % 8, 0);
  EXPECT_EQ(file.entry("empty").bytes, 0);
  EXPECT_EQ(file.entry("scalar").shape, Shape{});
  EXPECT_GT(file.entry("a.half").offset, file.entry("c").offset);
  const Tensor c = file.read("c", DType::f32), rounded = file.read("b.bf16", DType::f32),
               half = file.read("a.half", DType::f32);
  const Tensor narrowed = file.read("c", DType::bf16), same = file.read("b.bf16", DType::bf16);
  for (int i = 0; i < 15; ++i) {
    EXPECT_EQ(c.data<float>()[i], a.data<float>()[i]);
    EXPECT_EQ(rounded.data<float>()[i], to_f32(to_bf16(a.data<float>()[i])));
    EXPECT_EQ(narrowed.data<bf16>()[i], to_bf16(a.data<float>()[i]));
    EXPECT_EQ(same.data<bf16>()[i], to_bf16(a.data<float>()[i]));
  }
  for (int i = 0; i < 7; ++i) EXPECT_EQ(half.data<float>()[i], b.data<float>()[i]);
  expect_error([&] { file.read("d", DType::f32); }, "x.safetensors: tensor 'd' is missing");
}

TEST(Safetensors, TheLayoutDependsOnTheSpecsAlone) {
  std::string first, second;
  for (std::string* out : {&first, &second}) {
    std::vector<TensorSpec> specs = {{"b", DType::bf16, {2}}, {"a", DType::f32, {2}}};
    if (out == &second) std::swap(specs[0], specs[1]);
    SafetensorsWriter(specs, {},
                      [&](const void* data, int64_t count, int64_t) { out->append(static_cast<const char*>(data), count); });
  }
  EXPECT_EQ(first, second);
}

TEST(Safetensors, WriterRefusesWhatWasNotPromised) {
  SafetensorsWriter writer({{"a", DType::f32, {2}}}, {}, [](const void*, int64_t, int64_t) {});
  EXPECT_THROW(writer.write("b", Tensor::zeros(DType::f32, {2})), Error);
  EXPECT_THROW(writer.write("a", Tensor::zeros(DType::f32, {3})), Error);
  writer.write("a", Tensor::zeros(DType::f32, {2}));
  EXPECT_THROW(writer.write("a", Tensor::zeros(DType::f32, {2})), Error);
}

TEST(Safetensors, RefusesLyingHeaders) {
  const std::string eight(8, '\0'), sixteen(16, '\0');
  expect_refused("{\"a\":" + entry("F32", "[2]", 0, 8) + ",\"a\":" + entry("F32", "[2]", 8, 16) + "}", sixteen,
                 "the name 'a' occurs twice");
  expect_refused("{\"a\":" + entry("F33", "[2]", 0, 8) + "}", eight, "tensor 'a': dtype \"F33\" is not known");
  expect_refused("{\"a\":" + entry("F32", "[3]", 0, 8) + "}", eight,
                 "tensor 'a': takes 8 bytes by its offsets; expected 12 for F32 [3]");
  expect_refused("{\"a\":" + entry("F32", "[4]", 0, 16) + "}", eight,
                 "data_offsets [0, 16] are out of range; the file holds 8 bytes");
  expect_refused("{\"a\":" + entry("F32", "[2]", 8, 0) + "}", eight, "data_offsets [8, 0] are out of range");
  expect_refused("{\"a\":" + entry("F32", "[4294967296,4294967296]", 0, 8) + "}", eight, "is too large to be real");
  expect_refused("{\"a\":" + entry("F32", "[-2]", 0, 8) + "}", eight, "an extent of the shape is -2; expected an integer >= 0");
  expect_refused("{\"a\":" + entry("F32", "[2.0]", 0, 8) + "}", eight, "an extent of the shape is 2.0");
  expect_refused("{\"a\":" + entry("F32", "[2]", 0, 8) + ",\"b\":" + entry("F32", "[2]", 4, 12) + "}", eight + "0000",
                 "tensor 'b' overlaps another: it begins at byte 4 of the data, expected 8");
  expect_refused("{\"a\":" + entry("F32", "[2]", 0, 8) + ",\"b\":" + entry("F32", "[1]", 12, 16) + "}", sixteen,
                 "there is a hole before tensor 'b': it begins at byte 12 of the data, expected 8");
  expect_refused("{\"a\":" + entry("F32", "[2]", 0, 8) + "}", sixteen, "holds 16 bytes of data, but its tensors cover 8");
  expect_refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", eight, "tensor 'a': has no 'data_offsets'");
  expect_refused("{\"a\":7}", eight, "tensor 'a': has no 'dtype'");
  expect_refused("{\"__metadata__\":{\"x\":1}}", "", "__metadata__ 'x' is not a string");
  expect_refused("[1]", "", "the header is not a JSON object");
  expect_refused("{\"a\":", "", "is not valid JSON");
  expect_refused("{\"\xff\":1}", "", "is not valid JSON");

  const TempFolder folder;
  write_bytes(folder / "short", "1234");
  expect_error([&] { SafetensorsFile(folder / "short"); }, "expected at least 8 bytes of safetensors header, found 4");
  write_bytes(folder / "long", std::string(7, '\xff') + '\x7f' + "{}");
  expect_error([&] { SafetensorsFile(folder / "long"); }, "says its header has 9223372036854775807 bytes; expected at most 2");
}

TEST(Safetensors, OtherDtypesAreListedButNotReadAsWeights) {
  const TempFolder folder;
  write_bytes(folder / "m", file_of("{\"ids\":" + entry("I64", "[1]", 0, 8) + "}", std::string(8, '\0')));
  const SafetensorsFile file(folder / "m");
  EXPECT_EQ(file.entry("ids").dtype, "I64");
  expect_error([&] { file.read("ids", DType::f32); }, "tensor 'ids' is stored as I64; expected F32, F16 or BF16");
}

TEST(SafetensorsIndex, RoundTripAndRefusals) {
  const TempFolder folder;
  SafetensorsIndex index{.weight_map = {{"a", "model-00001-of-00002.safetensors"}, {"b", "model-00002-of-00002.safetensors"}},
                         .total_size = 24};
  write_bytes(folder / "i.json", to_json_text(index));
  const SafetensorsIndex back = read_safetensors_index(folder / "i.json");
  EXPECT_EQ(back.weight_map, index.weight_map);
  EXPECT_EQ(back.total_size, 24);
  write_bytes(folder / "up.json", R"({"weight_map":{"a":"../secret"}})");
  expect_error([&] { read_safetensors_index(folder / "up.json"); },
               "weight_map 'a' names '../secret'; expected a file in the same folder");
  write_bytes(folder / "none.json", "{}");
  expect_error([&] { read_safetensors_index(folder / "none.json"); }, "has no 'weight_map' object");
  write_bytes(folder / "number.json", R"({"weight_map":{"a":3}})");
  expect_error([&] { read_safetensors_index(folder / "number.json"); }, "weight_map 'a' is 3; expected a file name");
}

}  // namespace
}  // namespace cmoe
