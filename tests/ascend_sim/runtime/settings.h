// What the environment asks of the simulation; read once, when the library is first used. The first three can be changed later.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

namespace ascend_sim {

struct Settings {
  std::atomic<uint64_t> seed{0};       // ASCEND_SIM_SEED
  std::atomic<double> delay_us{50};    // ASCEND_SIM_DELAY_US: mean delay before each task, microseconds
  std::atomic<double> hold_us{2000};   // ASCEND_SIM_HOLD_US: a task that nobody waits for starts this much after its enqueue (mean)
  int npus = 8;                 // ASCEND_SIM_NPUS
  size_t device_memory = size_t(8) << 30;  // ASCEND_SIM_DEVICE_MEMORY, bytes per device
  size_t host_memory = size_t(8) << 30;    // ASCEND_SIM_HOST_MEMORY, bytes of pinned host memory per process
  double task_timeout_s = 0;    // ASCEND_SIM_TASK_TIMEOUT_S: overrides the timeout that torch_npu sets; 0 leaves it
  int rank = 0;                 // RANK, so that processes with one seed do not all have the same delays
  std::string trace;            // ASCEND_SIM_TRACE: file for the timeline, written when the process ends
  std::string error;            // what was wrong with the environment, empty when nothing was
};

const Settings& settings();
// For tests that go through many seeds in one process; a negative number leaves delay or hold as it is.
void set_schedule(uint64_t seed, double delay_us, double hold_us);

// "64MiB", "2GiB", "4096" -> bytes; false when it is none of these.
bool parse_size(const std::string& text, size_t* bytes);

}  // namespace ascend_sim
