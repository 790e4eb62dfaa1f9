// Whether the ranks that met in a collective meant the same one.
#pragma once
#include <string>

#include "communicator.h"

namespace ascend_sim::hccl {

// One message that names both sides, the same on every rank; "" when they agree.
std::string find_difference(Communicator& communicator, uint64_t number);

// The most bytes that one rank sends to one other (or to all), which tells how many rounds there are.
uint64_t longest_transfer(Communicator& communicator, uint64_t number);

}  // namespace ascend_sim::hccl
