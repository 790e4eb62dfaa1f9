// Settings of the collectives that come from the environment. A value that does not parse is an HcclFailure.
#pragma once
#include <cstdint>
#include <optional>
#include <string>

namespace ascend_sim::hccl {

std::optional<double> timeout_override();      // ASCEND_SIM_HCCL_TIMEOUT, seconds
double exec_timeout_seconds();                 // HCCL_EXEC_TIMEOUT; 0 means never
double connect_timeout_seconds();              // HCCL_CONNECT_TIMEOUT
uint32_t buffer_megabytes();                   // HCCL_BUFFSIZE
uint64_t slot_kilobytes();                     // ASCEND_SIM_HCCL_SLOT_KB: how much of a message is moved at a time
int64_t process_rank(uint32_t rank_in_communicator);   // RANK as launchers set it, else the communicator's
std::string short_seconds(double seconds);     // "5" or "0.5"

}  // namespace ascend_sim::hccl
