// Damaged files: cut at every length, every byte changed. A reader refuses with an Error or reads; it never crashes, hangs or
// takes memory without bound (the sanitizer build watches).
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "support/files.h"
#include "support/gguf_builder.h"
#include "tensor/gguf.h"
#include "tensor/safetensors.h"
#include "tensor/safetensors_writer.h"

namespace cmoe {
namespace {

struct Outcome {
  int refused = 0, read = 0;
};

template <class File, class Entries>
void try_reading(const std::string& bytes, const std::filesystem::path& path, Entries entries, Outcome& outcome) {
  write_bytes(path, bytes);
  try {
    const File file(path);
    for (const auto& [name, entry] : entries(file)) {
      try {
        file.read(name, DType::f32);
      } catch (const Error&) {  // a type that is known but not a weight
      }
    }
    ++outcome.read;
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("damaged"), std::string::npos) << error.what();
    ++outcome.refused;
  }
}

template <class File, class Entries>
void damage(const std::string& good, size_t header, Entries entries) {
  const TempFolder folder;
  const auto path = folder / "damaged";
  Outcome whole, cut, changed;
  try_reading<File>(good, path, entries, whole);
  EXPECT_EQ(whole.read, 1);
  for (size_t length = 0; length < good.size(); ++length) try_reading<File>(good.substr(0, length), path, entries, cut);
  EXPECT_EQ(cut.read, 0) << "a file cut short was taken for whole";
  for (size_t i = 0; i < header; ++i) {
    for (const int flip : {0x01, 0x80, 0xff}) {
      std::string bad = good;
      bad[i] = static_cast<char>(bad[i] ^ flip);
      try_reading<File>(bad, path, entries, changed);
    }
  }
  EXPECT_GT(changed.refused, changed.read / 2);
}

TEST(HostileFiles, Safetensors) {
  std::string good;
  SafetensorsWriter writer({{"a", DType::f32, {2, 3}}, {"b", DType::bf16, {4}}}, {{"format", "pt"}},
                           [&](const void* data, int64_t bytes, int64_t) {
                             good.append(static_cast<const char*>(data), static_cast<size_t>(bytes));
                           });
  const size_t header = good.size();
  writer.write("a", Tensor::zeros(DType::f32, {2, 3}));
  writer.write("b", Tensor::zeros(DType::bf16, {4}));
  damage<SafetensorsFile>(
      good, header, [](const SafetensorsFile& file) -> auto& { return file.entries(); });
}

TEST(HostileFiles, Gguf) {
  GgufBuilder builder;
  builder.key("general.architecture", std::string("llama")).key("n", 3u).key("x", 0.5f);
  builder.key("tokens", std::vector<std::string>{"a", "bc", "d"});
  builder.f32("m", {3, 2}, {1, 2, 3, 4, 5, 6})
      .tensor("q", {32}, 3, std::string(20, '\1'))
      .tensor("r", {32}, 8, std::string(34, '\2'));
  std::string good = builder.file();
  good.resize(good.size() - 30);  // the padding behind the last tensor, which a file may lack
  damage<GgufFile>(
      good, good.size(), [](const GgufFile& file) -> auto& { return file.tensors(); });
}

}  // namespace
}  // namespace cmoe
