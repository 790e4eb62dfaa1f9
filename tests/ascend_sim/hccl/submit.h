// From an HCCL call on the host to a task on its stream.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "collective.h"
#include "point_to_point.h"

namespace ascend_sim::hccl {

// Runs the body of an HCCL call and turns an HcclFailure into its code, with the message for aclGetRecentErrMsg.
int guarded(const char* call, const std::function<void()>& body);

std::shared_ptr<Communicator> communicator_of(HcclComm handle);          // HcclFailure for an unknown handle
DataType checked_type(int type);
ReduceOp checked_reduction(int op, DataType type);
uint32_t checked_rank(const Communicator& communicator, uint32_t rank, const char* what);
void* checked_buffer(const void* pointer, uint64_t bytes, const char* what);
std::vector<uint64_t> checked_list(const void* values, uint32_t length, const char* what);

// Both count the call, let faults strike, take the communicator's buffers and enqueue. `bytes` is for the ledger.
void submit_collective(const std::shared_ptr<Communicator>& communicator, aclrtStream stream, Collective collective,
                       uint64_t bytes);
void submit_transfers(const std::shared_ptr<Communicator>& communicator, aclrtStream stream, const std::string& call,
                      std::vector<Transfer> transfers);

// HcclGroupStart / HcclGroupEnd of this thread: sends and receives between them become one batch per communicator.
bool group_open();
void group_start();
void group_end();
void add_to_group(const std::shared_ptr<Communicator>& communicator, aclrtStream stream, const Transfer& transfer);

}  // namespace ascend_sim::hccl
