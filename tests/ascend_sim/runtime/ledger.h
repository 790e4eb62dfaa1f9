// Exact counts of everything the simulated device was asked to do since the last mark. Asynchronous work counts when it is enqueued.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "ascend_sim/runtime.h"

namespace ascend_sim {

enum class Counter : int {
  event_records,
  event_waits,
  event_synchronizations,
  event_queries,
  stream_synchronizations,
  stream_queries,
  device_synchronizations,
  streams_created,
  events_created,
  callbacks,
  number_of_counters,
};

void ledger_count(Counter counter);
void ledger_task(const Task& task);  // kernels and collectives; copies come through ledger_copy
void ledger_copy(int direction, bool asynchronous, bool pinned, uint64_t bytes);
void ledger_memset(bool asynchronous, uint64_t bytes);
void ledger_device_allocation(const std::string& owner, uint64_t bytes);
void ledger_device_free();
void ledger_host_allocation(uint64_t bytes);
void ledger_host_free();

void ledger_mark();
std::string ledger_json();
int64_t ledger_marked_at_ns();

std::string json_text(const std::string& text);  // quoted and escaped

}  // namespace ascend_sim
