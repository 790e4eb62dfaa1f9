// Where switched-on faults strike the collectives.
#pragma once
#include <cstdint>
#include <string>

namespace ascend_sim::hccl {

// hccl_error_at=N: throws HcclFailure at the N-th collective call of this process.
void check_host_fault(const std::string& call);

struct FaultPlan {
  double late_seconds = 0;                   // rank_late=RANK:SECONDS, at the first collective of that rank
  bool dies = false;                         // rank_dies=RANK:N, at the N-th collective of that rank
};

// Counts a collective of this process and says what is to befall it. RANK is the process's rank in the launch where the
// environment tells it, else the rank in the communicator.
FaultPlan plan_faults(uint32_t rank_in_communicator);
void strike(const FaultPlan& plan);          // in the task, before the rank arrives

}  // namespace ascend_sim::hccl
