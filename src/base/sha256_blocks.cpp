#include "base/sha256_blocks.h"

#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace cmoe {
namespace {

inline uint32_t load_big_endian(const uint8_t* bytes) {
  uint32_t word;
  std::memcpy(&word, bytes, 4);
  return __builtin_bswap32(word);
}

void plain_block(std::array<uint32_t, 8>& state, const uint8_t* data) {
  std::array<uint32_t, 64> w;
  for (size_t t = 0; t < 16; ++t) w[t] = load_big_endian(data + 4 * t);
  for (size_t t = 16; t < 64; ++t) {
    const uint32_t s0 = std::rotr(w[t - 15], 7) ^ std::rotr(w[t - 15], 18) ^ (w[t - 15] >> 3);
    const uint32_t s1 = std::rotr(w[t - 2], 17) ^ std::rotr(w[t - 2], 19) ^ (w[t - 2] >> 10);
    w[t] = w[t - 16] + s0 + w[t - 7] + s1;
  }
  // One round writes d and h; the caller turns the names instead of moving eight values.
  const auto round = [&](uint32_t a, uint32_t b, uint32_t c, uint32_t& d, uint32_t e, uint32_t f, uint32_t g, uint32_t& h,
                         size_t t) {
    const uint32_t choose = g ^ (e & (f ^ g));
    const uint32_t majority = (a & b) | (c & (a | b));
    const uint32_t t1 = h + (std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25)) + choose + kSha256Round[t] + w[t];
    d += t1;
    h = t1 + (std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22)) + majority;
  };
  auto [a, b, c, d, e, f, g, h] = state;
  for (size_t t = 0; t < 64; t += 8) {
    round(a, b, c, d, e, f, g, h, t);
    round(h, a, b, c, d, e, f, g, t + 1);
    round(g, h, a, b, c, d, e, f, t + 2);
    round(f, g, h, a, b, c, d, e, t + 3);
    round(e, f, g, h, a, b, c, d, t + 4);
    round(d, e, f, g, h, a, b, c, t + 5);
    round(c, d, e, f, g, h, a, b, t + 6);
    round(b, c, d, e, f, g, h, a, t + 7);
  }
  const std::array<uint32_t, 8> sum{a, b, c, d, e, f, g, h};
  for (size_t i = 0; i < 8; ++i) state[i] += sum[i];
}

#if defined(__x86_64__)

// The instructions keep the state as (a, b, e, f) and (c, d, g, h), the highest lane first, and do two rounds each.
__attribute__((target("sha,sse4.1,ssse3"))) void instruction_blocks(std::array<uint32_t, 8>& state, const uint8_t* data,
                                                                    size_t count) {
  auto* words = reinterpret_cast<__m128i*>(state.data());
  const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  const __m128i badc = _mm_shuffle_epi32(_mm_loadu_si128(words), 0xb1);
  const __m128i hgfe = _mm_shuffle_epi32(_mm_loadu_si128(words + 1), 0x1b);
  __m128i abef = _mm_alignr_epi8(badc, hgfe, 8), cdgh = _mm_blend_epi16(hgfe, badc, 0xf0);
  for (; count > 0; --count, data += 64) {
    const __m128i abef_before = abef, cdgh_before = cdgh;
    __m128i w[4];  // the last 16 words of the schedule
    for (size_t i = 0; i < 16; ++i) {
      __m128i& next = w[i % 4];
      if (i < 4) {
        next = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data) + i), big_endian);
      } else {
        const __m128i last = w[(i + 3) % 4], seven_back = _mm_alignr_epi8(last, w[(i + 2) % 4], 4);
        next = _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(next, w[(i + 1) % 4]), seven_back), last);
      }
      const __m128i sum = _mm_add_epi32(next, _mm_loadu_si128(reinterpret_cast<const __m128i*>(kSha256Round.data()) + i));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0e));
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }
  const __m128i feba = _mm_shuffle_epi32(abef, 0x1b), dchg = _mm_shuffle_epi32(cdgh, 0xb1);
  _mm_storeu_si128(words, _mm_blend_epi16(feba, dchg, 0xf0));
  _mm_storeu_si128(words + 1, _mm_alignr_epi8(dchg, feba, 8));
}

bool has_instructions() {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_SSSE3) || !(c & bit_SSE4_1)) return false;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_SHA);
}

#endif

}  // namespace

void sha256_blocks_plain(std::array<uint32_t, 8>& state, const uint8_t* data, size_t count) {
  for (; count > 0; --count, data += 64) plain_block(state, data);
}

Sha256Blocks find_sha256_instructions() {
#if defined(__x86_64__)
  if (has_instructions()) return instruction_blocks;
#endif
  return nullptr;
}

}  // namespace cmoe
