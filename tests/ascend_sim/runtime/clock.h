#pragma once
#include <chrono>
#include <cstdint>

namespace ascend_sim {

using Clock = std::chrono::steady_clock;

// Nanoseconds of the clock that everything in the simulation is stamped with.
inline int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch()).count();
}

}  // namespace ascend_sim
