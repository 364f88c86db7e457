#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace cmoe {

/// `count` offsets of windows of `seq_len` tokens in a text of `tokens` tokens: Python's
/// `random.seed(seed); [random.randint(0, tokens - seq_len - 1) for _ in range(count)]`, as GPTQ-style scripts draw calibration
/// data. Windows may overlap. @throws Error when the text has no more than seq_len tokens.
std::vector<int64_t> random_offsets(int64_t tokens, int64_t seq_len, int64_t count, uint64_t seed);

/// Offsets from a file: one a line, in tokens; blank lines and what follows '#' do not count.
/// @throws Error naming file and line: not a number, or a window that does not lie inside the text; or no offset at all.
std::vector<int64_t> read_offsets(const std::string& path, int64_t tokens, int64_t seq_len);

/// Offsets 0, seq_len, 2 seq_len, ... of all whole windows, at most `limit` of them where limit > 0.
/// @throws Error when the text has fewer than seq_len tokens.
std::vector<int64_t> consecutive_offsets(int64_t tokens, int64_t seq_len, int64_t limit = 0);

/// One window of strided perplexity: the model reads tokens [offset, offset + length), and its predictions of the tokens from
/// offset + score_from on count. score_from >= 1: the first token of a window has no prediction.
struct StridedWindow {
  int64_t offset = 0;
  int64_t length = 0;
  int64_t score_from = 1;
};

/// Windows of up to `seq_len` tokens, `stride` apart, that together score every token but the first exactly once, each with at
/// least seq_len - stride tokens of context where the text has them. Source: the sliding window of Hugging Face's perplexity
/// guide.
/// @throws Error when stride is not in [1, seq_len - 1], or the text has fewer than two tokens.
std::vector<StridedWindow> strided_windows(int64_t tokens, int64_t seq_len, int64_t stride);

/// The contiguous part [first, second) of `count` sequences that rank `rank` of `size` works on; sizes differ by at most one,
/// the larger parts first. Empty for ranks beyond the work.
std::pair<int64_t, int64_t> shard_of(int64_t count, int64_t rank, int64_t size);

}  // namespace cmoe
