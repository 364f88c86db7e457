#include <gtest/gtest.h>

#include "base/sha256.h"
#include "base/sha256_blocks.h"
#include "support/refusal.h"
#include "support/temporary_directory.h"

namespace cmoe {
namespace {

// Vectors of NIST's "Descriptions of SHA-256" (FIPS 180 examples).
TEST(Sha256, MatchesNistVectors) {
  EXPECT_EQ(sha256_hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256_hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256_hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(
      sha256_hex(
          "abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu"),
      "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1");
  EXPECT_EQ(sha256_hex(std::string(1'000'000, 'a')), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, PiecesDoNotMatter) {
  std::string text;
  for (int i = 0; i < 300; ++i) text += static_cast<char>(i * 37);
  for (size_t length = 0; length <= text.size(); length += 7) {
    const std::string expected = sha256_hex(text.substr(0, length));
    for (size_t piece : {1, 3, 63, 64, 65, 130}) {
      Sha256 hash;
      for (size_t at = 0; at < length; at += piece) hash.update(text.data() + at, std::min(piece, length - at));
      EXPECT_EQ(hash.hex(), expected) << length << " bytes in pieces of " << piece;
    }
  }
}

TEST(Sha256, InstructionsGiveWhatThePlainCodeGives) {
  const Sha256Blocks instructions = find_sha256_instructions();
  if (!instructions) GTEST_SKIP() << "this CPU has no SHA-256 instructions";
  std::vector<uint8_t> data(64 * 9);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<uint8_t>(i * i * 31 + i / 7);
  for (size_t count : {0, 1, 2, 9}) {
    std::array<uint32_t, 8> plain{1, 0x80000000, 3, 0xffffffff, 5, 6, 7, 8}, fast = plain;
    sha256_blocks_plain(plain, data.data(), count);
    instructions(fast, data.data(), count);
    EXPECT_EQ(fast, plain) << count << " blocks";
  }
}

TEST(Sha256, HashesFilesAndRefusesMissingOnes) {
  const TemporaryDirectory folder;
  write_text(folder / "a", std::string(3'000'000, 'x'));
  EXPECT_EQ(sha256_of_file(folder / "a"), sha256_hex(std::string(3'000'000, 'x')));
  EXPECT_EQ(refusal([&] { sha256_of_file(folder / "none"); }), folder / "none" + ": cannot open: No such file or directory");
  EXPECT_EQ(refusal([&] { sha256_of_file(folder.path()); }), folder.path().string() + ": cannot read: Is a directory");
}

}  // namespace
}  // namespace cmoe
