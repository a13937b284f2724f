// The threads that ops use: one pool for the process, started at the first need.
#pragma once

#include <cstdint>
#include <functional>

namespace weft {

// Calls body(begin, end) on disjoint ranges of at most `chunk` items that cover [0, count): on the caller and
// on at most threads - 1 workers, each taking the next range when it is done with one. So a worker that the
// system keeps waiting holds up no more than the range that it has begun, and none if it has not. Workers
// look for work for some 50 us after a call, then sleep. Serial, as one range, when called from inside a body
// or while another thread uses the pool. The first exception of a body is thrown to the caller when all
// have returned; ranges not begun by then are left out.
void run_in_parallel(int64_t count, int64_t chunk, int threads,
                     const std::function<void(int64_t, int64_t)>& body);

}  // namespace weft
