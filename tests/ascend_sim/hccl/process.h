// What the collectives need to know about processes.
#pragma once
#include <sys/types.h>

#include <cstdint>

namespace ascend_sim::hccl {

uint64_t own_pid_namespace();                        // 0 when it cannot be read
uint64_t process_start_time(pid_t pid);              // in clock ticks since boot; 0 when there is no such process
bool process_alive(pid_t pid, uint64_t start_time);  // neither gone, nor waiting to be reaped, nor another one

}  // namespace ascend_sim::hccl
