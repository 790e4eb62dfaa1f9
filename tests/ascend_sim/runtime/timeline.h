// What ran when: kept in memory, written as a Chrome trace (chrome://tracing, Perfetto).
#pragma once
#include <cstdint>
#include <string>

#include "ascend_sim/runtime.h"

namespace ascend_sim {

// A task that ran on a stream.
void timeline_task(int stream, int device, const Task& task, int64_t enqueued_ns, int64_t begin_ns, int64_t end_ns);
// A call in which the host waited.
void timeline_host(const char* call, int64_t begin_ns, int64_t end_ns);

// Writes what began at or after `since_ns`; "" or what went wrong.
std::string write_timeline(const std::string& path, int64_t since_ns);
// Writes ASCEND_SIM_TRACE when it is set (with the rank in the name where RANK is set). Called when the process ends.
void write_timeline_of_process();

}  // namespace ascend_sim
