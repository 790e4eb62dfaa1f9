// Operations in which every rank of a communicator takes part.
#pragma once
#include <vector>

#include "communicator.h"

namespace ascend_sim::hccl {

struct Span {
  void* pointer = nullptr;                   // a device pointer
  uint64_t bytes = 0;
};

// One rank's part. With `personal`, outgoing[d] is for rank d alone; otherwise outgoing[0] is for all. incoming[r] is
// where the part of rank r goes; with a reduction all parts have the same size and go, combined, to incoming[0].
struct Collective {
  Operation operation{};
  std::vector<uint64_t> send_counts, receive_counts;   // as handed in by the caller, only to be compared and reported
  bool personal = false;
  std::vector<Span> outgoing, incoming;
};

// Runs on the stream's worker. Throws DeviceError, on every rank of the communicator, when the ranks do not agree.
void run_collective(Communicator& communicator, const Collective& collective);

// "HcclAllReduce number 3, count 8, float32, sum"
std::string describe(const Operation& operation, const uint64_t* send_counts, const uint64_t* receive_counts);

}  // namespace ascend_sim::hccl
