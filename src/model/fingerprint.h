#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "base/sha256.h"
#include "model/checkpoint.h"

namespace cmoe {

/// A hash that tells two models apart: SHA-256 over every tensor's name, shape and stored type, and a sample of its bytes
/// (hash_sample). Any training that moves a matrix as a whole moves it, frozen norms or not; the same weights in another file
/// type count as another model. Reads at most 4 KiB a tensor: 3 MB for 70B parameters in 723 tensors. Every rank computes the
/// same.
std::string model_fingerprint(const Checkpoint& checkpoint);

/// Adds a sample of `bytes` bytes to the hash: 16 pieces of 256 bytes, the first at the beginning, the last at the end, the
/// others evenly between; all bytes where that is fewer.
/// @param read  reads `count` bytes from byte `begin` on.
void hash_sample(int64_t bytes, const std::function<void(int64_t begin, int64_t count, void* to)>& read, Sha256& hash);

}  // namespace cmoe
