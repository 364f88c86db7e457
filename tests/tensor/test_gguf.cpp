#include <gtest/gtest.h>

#include "support/files.h"
#include "support/gguf_builder.h"
#include "tensor/gguf.h"

namespace cmoe {
namespace {

void expect_refused(const std::string& bytes, const std::string& part) {
  const TempFolder folder;
  write_bytes(folder / "m.gguf", bytes);
  expect_error([&] { GgufFile(folder / "m.gguf"); }, "m.gguf", part);
}

TEST(Gguf, MetadataOfEveryType) {
  using B = GgufBuilder;
  const TempFolder folder;
  const std::string nested = B::bytes_of<uint32_t>(9) + B::bytes_of<uint64_t>(2) +                             // array of
                             B::bytes_of<uint32_t>(5) + B::bytes_of<uint64_t>(1) + B::bytes_of<int32_t>(-7) +  // [-7]
                             B::bytes_of<uint32_t>(7) + B::bytes_of<uint64_t>(2) + std::string("\0\1", 2);     // [false, true]
  for (uint32_t version : {2u, 3u}) {
    B builder;
    builder.version = version;
    builder.raw("u8", 0, B::bytes_of<uint8_t>(200))
        .raw("i8", 1, B::bytes_of<int8_t>(-3))
        .raw("u16", 2, B::bytes_of<uint16_t>(65535));
    builder.raw("i16", 3, B::bytes_of<int16_t>(-300)).key("u32", 4000000000u).raw("i32", 5, B::bytes_of<int32_t>(-70000));
    builder.key("f32", 0.5f).raw("bool", 7, std::string(1, '\1')).key("string", std::string("text")).raw("array", 9, nested);
    builder.raw("u64", 10, B::bytes_of<uint64_t>(uint64_t{1} << 40))
        .raw("i64", 11, B::bytes_of<int64_t>(-5))
        .raw("f64", 12, B::bytes_of(0.1));
    builder.key("strings", std::vector<std::string>{"a", "", "c"});
    write_bytes(folder / "m.gguf", builder.file());
    const GgufFile file(folder / "m.gguf");
    EXPECT_EQ(file.integer("u8"), 200);
    EXPECT_EQ(file.integer("i8"), -3);
    EXPECT_EQ(file.integer("u16"), 65535);
    EXPECT_EQ(file.integer("i16"), -300);
    EXPECT_EQ(file.integer("u32"), 4000000000);
    EXPECT_EQ(file.integer("i32"), -70000);
    EXPECT_EQ(file.integer("u64"), int64_t{1} << 40);
    EXPECT_EQ(file.integer("i64"), -5);
    EXPECT_EQ(file.number("f32"), 0.5);
    EXPECT_EQ(file.number("f64"), 0.1);
    EXPECT_EQ(file.number("u8"), 200.0);
    EXPECT_EQ(file.find_bool("bool"), true);
    EXPECT_EQ(file.string("string"), "text");
    EXPECT_EQ(file.find_strings("strings"), (std::vector<std::string>{"a", "", "c"}));
    const auto& outer = std::get<GgufArray>(file.metadata().at("array").value);
    EXPECT_EQ(std::get<int64_t>(std::get<GgufArray>(outer.at(0).value).at(0).value), -7);
    EXPECT_EQ(std::get<bool>(std::get<GgufArray>(outer.at(1).value).at(1).value), true);
    EXPECT_EQ(file.find_integer("absent"), std::nullopt);
    expect_error([&] { file.string("absent"); }, "m.gguf: metadata 'absent' is missing");
    expect_error([&] { file.integer("string"); }, "m.gguf: metadata 'string' holds a string; expected an integer");
    expect_error([&] { file.find_integers("strings"); }, "metadata 'strings' holds a string; expected an integer");
    expect_error([&] { file.find_strings("u8"); }, "metadata 'u8' holds an integer; expected an array");
  }
}

TEST(Gguf, TensorsAreReadRowMajor) {
  const TempFolder folder;
  GgufBuilder builder;
  builder.alignment = 64;
  builder.key("general.alignment", 64u);
  builder.f32("first", {3}, {1, 2, 3}).f32("matrix", {3, 2}, {1, 2, 3, 4, 5, 6});
  builder.tensor("half", {2}, 1, std::string("\x00\x3c\x00\xc0", 4))
      .tensor("brain", {2}, 30, std::string("\x80\x3f\x00\xc0", 4));
  write_bytes(folder / "m.gguf", builder.file());
  const GgufFile file(folder / "m.gguf");
  EXPECT_EQ(file.tensor("matrix").shape, (Shape{2, 3}));
  EXPECT_EQ(file.tensor("matrix").offset % 64, 0);
  EXPECT_EQ(file.read("matrix", DType::f32).row<float>(1)[0], 4.0f);
  for (const char* name : {"half", "brain"}) {
    const Tensor pair = file.read(name, DType::f32);
    EXPECT_EQ(pair.data<float>()[0], 1.0f);
    EXPECT_EQ(pair.data<float>()[1], -2.0f);
  }
  expect_error([&] { file.read("none", DType::f32); }, "m.gguf: tensor 'none' is missing");
}

TEST(Gguf, RefusesLyingHeaders) {
  using B = GgufBuilder;
  B good;
  good.key("k", 1u).f32("t", {4}, {1, 2, 3, 4});
  expect_refused("GGU", "is cut short; expected the letters GGUF");
  expect_refused("GGML" + good.file().substr(4), "does not begin with the letters GGUF");
  B one = good;
  one.version = 1;
  expect_refused(one.file(), "has GGUF version 1; expected 2 or 3");
  one.version = 0x03000000;
  expect_refused(one.file(), "is a big-endian GGUF file");

  std::string counts = good.file();
  counts.replace(8, 8, B::bytes_of<uint64_t>(uint64_t{1} << 60));
  expect_refused(counts, "says it has 1152921504606846976 tensors and 1 keys");
  expect_refused(B().raw("s", 8, B::bytes_of<uint64_t>(uint64_t{1} << 50)).key("k", 1u).file(), "a string at byte");
  expect_refused(B().raw("a", 9, B::bytes_of<uint32_t>(4) + B::bytes_of<uint64_t>(uint64_t{1} << 50)).key("k", 1u).file(),
                 "says it has 1125899906842624 elements in an array");
  expect_refused(B().raw("x", 13, "").key("k", 1u).file(), "metadata 'x': the value type 13 is not known");
  expect_refused(B().raw("x", 9, B::bytes_of<uint32_t>(13) + B::bytes_of<uint64_t>(0)).file(),
                 "metadata 'x': the element type 13 is not known");
  expect_refused(B().raw("x", 7, "\2").key("k", 1u).file(), "metadata 'x': a bool is 2");
  std::string deep;
  for (int i = 0; i < 20; ++i) deep += B::bytes_of<uint32_t>(9) + B::bytes_of<uint64_t>(1);
  expect_refused(B().raw("x", 9, deep).file(), "metadata 'x': arrays are nested deeper than 8");
  expect_refused(B().key("k", 1u).key("k", 2u).file(), "metadata 'k': occurs twice");
  expect_refused(B().key("general.alignment", 24u).file(), "general.alignment is not a power of two");

  expect_refused(B().f32("t", {1}, {1}).f32("t", {1}, {1}).file(), "tensor 't': occurs twice");
  expect_refused(B().info("t", {1, 1, 1, 1, 1}, 0, 0).f32("u", {1}, {1}).file(),
                 "tensor 't': has 5 dimensions; expected at most 4");
  expect_refused(B().info("t", {uint64_t{1} << 32, uint64_t{1} << 32}, 0, 0).file(), "tensor 't': is too large to be real");
  expect_refused(B().info("t", {0}, 0, 0).file(), "tensor 't': has an extent of 0");
  expect_refused(B().info("t", {32}, 77, 0).file(), "tensor 't': its type 77 is not known");
  expect_refused(B().info("t", {33}, 2, 0).f32("u", {1}, {1}).file(),
                 "tensor 't': has rows of 33; expected a multiple of 32 for Q4_0");
  expect_refused(B().info("t", {4}, 0, 0).file(),
                 "tensor 't' lies out of the file: 16 bytes from byte 0 of the data, of which there are 0");
  expect_refused(B().f32("u", {1}, {1}).info("t", {4}, 0, 8).file(),
                 "tensor 't' begins at byte 8 of the data; expected a multiple of 32");
  expect_refused(B().f32("t", {9}, std::vector<float>(9)).info("u", {8}, 0, 32).file(), "tensor 'u' overlaps tensor 't'");
}

TEST(Gguf, QuantisationsWithoutDecoderAreNamed) {
  const TempFolder folder;
  write_bytes(folder / "m.gguf", GgufBuilder().tensor("t", {256}, 12, std::string(144, '\0')).file());
  const GgufFile file(folder / "m.gguf");
  EXPECT_EQ(file.tensor("t").type_name, "Q4_K");
  expect_error([&] { file.read("t", DType::f32); },
               "tensor 't' is stored as Q4_K; expected F32, F16, BF16, Q8_0, Q4_0 or Q4_1");
}

}  // namespace
}  // namespace cmoe
