#include "model/fingerprint.h"

#include <fmt/format.h>

#include <array>
#include <vector>

#include "base/parallel.h"

namespace cmoe {

std::string model_fingerprint(const Checkpoint& checkpoint) {
  const std::vector<std::string> names = checkpoint.tensors->names();
  std::vector<std::string> digests(names.size());
  // Small reads all over the files: on a network file system the threads wait for them side by side.
  parallel_for(static_cast<int64_t>(names.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      Sha256 hash;
      checkpoint.tensors->hash_sample_of(names[static_cast<size_t>(i)], hash);
      digests[static_cast<size_t>(i)] = hash.hex();
    }
  });
  Sha256 hash;
  for (size_t i = 0; i < names.size(); ++i) {
    const std::string line = fmt::format("{} {} {} {}\n", names[i], to_string(checkpoint.tensors->shape(names[i])),
                                         checkpoint.tensors->stored_type(names[i]), digests[i]);
    hash.update(line.data(), line.size());
  }
  return hash.hex();
}

void hash_sample(int64_t bytes, const std::function<void(int64_t begin, int64_t count, void* to)>& read, Sha256& hash) {
  constexpr int64_t kPieces = 16, kPieceBytes = 256;
  std::array<char, kPieces * kPieceBytes> sample;
  if (bytes <= kPieces * kPieceBytes) {
    read(0, bytes, sample.data());
    hash.update(sample.data(), static_cast<size_t>(bytes));
    return;
  }
  for (int64_t piece = 0; piece < kPieces; ++piece) {
    // The product of size and piece stays below 2^63 for tensors of 2^59 bytes.
    read((bytes - kPieceBytes) * piece / (kPieces - 1), kPieceBytes, sample.data() + piece * kPieceBytes);
  }
  hash.update(sample.data(), sample.size());
}

}  // namespace cmoe
