#pragma once

#include <cstdint>

/// Work on single rows in host memory, by this machine's best kernels on the calling thread: for callers that divide rows over
/// threads themselves.
namespace cmoe {

// Magnitudes are the bits of |x| as integers, ordered alike; infinity's are 0x7f800000, a NaN's above.
/// maxima[s] = the largest magnitude of x[s], x[s + slices], ...; 0 where n <= s.
void slice_maxima(const float* x, int64_t n, int64_t slices, int32_t* maxima);
/// The indices, ascending, of magnitudes >= least; returns how many. `index` has room for n.
int64_t list_magnitudes(const float* x, int64_t n, int32_t least, int32_t* index);

/// y += x, both [n].
void add_row(const float* x, int64_t n, float* y);

}  // namespace cmoe
