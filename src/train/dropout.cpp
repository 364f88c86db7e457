#include "train/dropout.h"

#include <cmath>

#include "base/parallel.h"

namespace cmoe {

void DropoutMask::apply(const Tensor& x, std::span<const int32_t> tokens, Tensor& out, bool accumulate) const {
  const int64_t d = x.dim(1), words = (d + 3) / 4;
  const auto threshold = static_cast<uint32_t>(std::lround(static_cast<double>(probability) * 65536));
  const auto keep = static_cast<float>(65536.0 / (65536.0 - threshold));
  parallel_for(x.dim(0), 8, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const auto token = static_cast<uint64_t>(tokens.empty() ? row : tokens[static_cast<size_t>(row)]);
      const float* from = x.row<float>(row);
      float* to = out.row<float>(row);
      for (int64_t word = 0; word < words; ++word) {
        uint64_t bits = random_bits(key, token * static_cast<uint64_t>(words) + static_cast<uint64_t>(word));
        const int64_t last = std::min(d, word * 4 + 4);
        for (int64_t i = word * 4; i < last; ++i, bits >>= 16) {
          const float value = (bits & 0xffffu) >= threshold ? from[i] * keep : 0.0f;
          to[i] = accumulate ? to[i] + value : value;
        }
      }
    }
  });
}

}  // namespace cmoe
