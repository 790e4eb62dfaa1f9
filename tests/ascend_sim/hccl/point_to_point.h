// Sends and receives between two ranks, alone or as a batch that goes forward together.
#pragma once
#include <vector>

#include "communicator.h"

namespace ascend_sim::hccl {

struct Transfer {
  bool send;
  uint32_t peer;
  void* buffer;                              // a device pointer
  uint64_t count;
  DataType type;
};

// Runs on the stream's worker and returns when every transfer is complete. `name` is the HCCL call.
void run_transfers(Communicator& communicator, const std::string& name, const std::vector<Transfer>& transfers);

std::string describe(const Transfer& transfer);   // "sends 4 float32 to rank 1"

}  // namespace ascend_sim::hccl
