#include <gtest/gtest.h>

#include <bit>
#include <fstream>
#include <string>
#include <vector>

#include "base/parallel.h"
#include "support/files.h"
#include "tensor/dequantize.h"

namespace cmoe {
namespace {

StoredType type_named(const std::string& name) {
  for (int i = 0; i < 6; ++i) {
    if (name_of(static_cast<StoredType>(i)) == name) return static_cast<StoredType>(i);
  }
  throw std::runtime_error(name);
}

std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2) bytes.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  return bytes;
}

TEST(Dequantize, EqualsTheGgufPackageToTheBit) {
  std::ifstream golden(std::string(CMOE_SOURCE_DIR) + "/tests/tensor/dequantize_golden.txt");
  std::string name, block, values;
  int lines = 0;
  while (golden >> name >> block >> values) {
    ++lines;
    const std::string bytes = from_hex(block);
    std::vector<float> decoded(32);
    decode(type_named(name), bytes.data(), 32, decoded.data());
    for (size_t i = 0; i < 32; ++i) {
      const auto expected = static_cast<uint32_t>(std::stoul(values.substr(8 * i, 8), nullptr, 16));
      EXPECT_EQ(std::bit_cast<uint32_t>(decoded[i]), expected) << name << " line " << lines << " weight " << i;
    }
  }
  EXPECT_EQ(lines, 13);
}

// One weight worked out by hand per type, so that the golden file is not the only witness.
TEST(Dequantize, FormulasByHand) {
  std::vector<float> w(32);
  std::string q8(34, '\0');
  q8[1] = 0x3c;  // d = 1.0
  q8[2 + 31] = static_cast<char>(-128);
  decode(StoredType::Q8_0, q8.data(), 32, w.data());
  EXPECT_EQ(w[31], -128.0f);
  std::string q4(18, '\0');
  q4[1] = 0x40;  // d = 2.0
  q4[2] = static_cast<char>(0xf1);
  decode(StoredType::Q4_0, q4.data(), 32, w.data());
  EXPECT_EQ(w[0], -14.0f);
  EXPECT_EQ(w[16], 14.0f);
  std::string q41(20, '\0');
  q41[1] = 0x40;                     // d = 2.0
  q41[3] = static_cast<char>(0xbc);  // m = -1.0
  q41[4] = static_cast<char>(0xf1);
  decode(StoredType::Q4_1, q41.data(), 32, w.data());
  EXPECT_EQ(w[0], 1.0f);
  EXPECT_EQ(w[16], 29.0f);
}

// Longer than one piece and one range of a thread, with a rest, at an odd offset; bf16 is the rounded f32.
TEST(Dequantize, ReadingInPiecesEqualsDecodingAtOnce) {
  const TempFolder folder;
  const int64_t rows = 131077, columns = 64;
  std::string data(static_cast<size_t>(7 + rows * columns / 32 * 20), '\0');
  uint32_t state = 1;
  for (char& byte : data) byte = static_cast<char>((state = state * 1664525u + 1013904223u) >> 24);
  for (size_t block = 7; block < data.size(); block += 20) data[block + 1] = data[block + 3] = 0x2c;  // finite scales
  write_bytes(folder / "blocks", data);
  std::vector<float> expected(static_cast<size_t>(rows * columns));
  decode(StoredType::Q4_1, data.data() + 7, rows * columns, expected.data());
  const InputFile file(folder / "blocks");
  for (int threads : {1, 3}) {
    set_num_threads(threads);
    const Tensor f32 = read_stored(file, 7, StoredType::Q4_1, {rows, columns}, DType::f32);
    const Tensor b16 = read_stored(file, 7, StoredType::Q4_1, {rows, columns}, DType::bf16);
    int64_t wrong = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      wrong += f32.data<float>()[i] != expected[i] || b16.data<bf16>()[i] != to_bf16(expected[i]);
    }
    EXPECT_EQ(wrong, 0);
  }
  set_num_threads(1);
}

TEST(InputFile, NamesWhatItCannotRead) {
  const TempFolder folder;
  expect_error([&] { InputFile(folder / "none"); }, (folder / "none").string(), "cannot be opened: No such file");
  expect_error([&] { InputFile(folder.path()); }, "is not a regular file");
  write_bytes(folder / "ten", "0123456789");
  const InputFile file(folder / "ten");
  char buffer[8];
  file.read(buffer, 3, 7);
  EXPECT_EQ(std::string(buffer, 3), "789");
  expect_error([&] { file.read(buffer, 4, 7); }, "is cut short; expected 4 bytes from byte 7, found a file of 10 bytes");
  expect_error([&] { file.read(buffer, 4, -1); }, "is cut short");
}

}  // namespace
}  // namespace cmoe
