#pragma once

#include <cstdint>
#include <functional>

namespace cmoe {

/// Threads of this process that parallel_for uses, the caller included. Default 1 until set.
int num_threads();

/// Sets the number of threads (>= 1). Call from the main thread, outside parallel_for.
void set_num_threads(int threads);

/// Calls body(begin, end) over disjoint ranges that cover [0, count), each at most `grain` long, on this process's threads.
/// Ranges are cut at multiples of `grain`, so what a call computes does not depend on the number of threads.
/// The first exception of a body is rethrown here. Nested calls run on the calling thread alone.
void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t begin, int64_t end)>& body);

}  // namespace cmoe
