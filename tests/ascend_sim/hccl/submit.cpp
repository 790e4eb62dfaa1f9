// From an HCCL call on the host to a task on its stream: checks, counting, faults, groups.
#include "submit.h"

#include <algorithm>
#include <cstdio>

#include "ascend_sim/runtime.h"
#include "fault_points.h"
#include "reduce.h"

namespace ascend_sim::hccl {
namespace {

struct OpenGroup {
  std::shared_ptr<Communicator> communicator;
  aclrtStream stream;
  std::vector<Transfer> transfers;
};

thread_local int group_depth = 0;
thread_local std::vector<OpenGroup> open_groups;

void submit(const std::shared_ptr<Communicator>& communicator, aclrtStream stream, const std::string& call,
            uint64_t bytes, std::function<void(Communicator&)> work) {
  std::shared_ptr<Communicator::Turn> turn = communicator->next_turn();
  FaultPlan faults = plan_faults(communicator->rank());
  enqueue(stream, Task{Kind::collective, call,
                       [turn, faults, work = std::move(work)] {
                         strike(faults);
                         turn->owner->wait_for_turn(*turn);
                         work(*turn->owner);
                         turn->release();
                       },
                       bytes, communicator->name()});
}

}  // namespace

int guarded(const char* call, const std::function<void()>& body) {
  try {
    body();
    return kSuccess;
  } catch (const HcclFailure& failure) {
    std::string message = std::string("simulated ") + call + ": " + failure.what();
    std::fprintf(stderr, "[ascend_sim] %s (HCCL error %d, %s)\n", message.c_str(), failure.code,
                 result_name(failure.code));
    return fail(failure.code, message);
  }
}

std::shared_ptr<Communicator> communicator_of(HcclComm handle) {
  if (handle == nullptr) throw HcclFailure(kNullPointer, "the communicator is a null pointer");
  std::shared_ptr<Communicator> found = find_communicator(handle);
  if (found == nullptr) throw HcclFailure(kBadParameter, "the communicator does not exist or has been destroyed");
  return found;
}

DataType checked_type(int type) {
  if (element_bytes(static_cast<DataType>(type)) == 0)
    throw HcclFailure(kBadParameter, "there is no data type " + std::to_string(type));
  return static_cast<DataType>(type);
}

ReduceOp checked_reduction(int op, DataType type) {
  if (op < 0 || op > static_cast<int>(ReduceOp::min))
    throw HcclFailure(kBadParameter, "there is no reduction " + std::to_string(op) + "; 0 to 3 are sum, prod, max, min");
  if (!reduction_supported(type, static_cast<ReduceOp>(op)))
    throw HcclFailure(kNotSupported, std::string(reduce_name(static_cast<ReduceOp>(op))) + " of " + type_name(type) +
                                         " is not supported on Atlas A2: reductions take int8, int16, int32, int64, "
                                         "float16, float32, bfloat16, and prod neither int16 nor bfloat16");
  return static_cast<ReduceOp>(op);
}

uint32_t checked_rank(const Communicator& communicator, uint32_t rank, const char* what) {
  if (rank >= communicator.rank_count())
    throw HcclFailure(kBadParameter, std::string(what) + " is rank " + std::to_string(rank) + ", but communicator " +
                                         communicator.name() + " has ranks 0 to " +
                                         std::to_string(communicator.rank_count() - 1));
  return rank;
}

void* checked_buffer(const void* pointer, uint64_t bytes, const char* what) {
  if (bytes == 0) return nullptr;
  if (pointer == nullptr) throw HcclFailure(kNullPointer, std::string(what) + " is a null pointer");
  if (!is_device_pointer(pointer))
    throw HcclFailure(kBadParameter, std::string(what) + " is host memory, but collectives work on device memory");
  return const_cast<void*>(pointer);
}

std::vector<uint64_t> checked_list(const void* values, uint32_t length, const char* what) {
  if (values == nullptr) throw HcclFailure(kNullPointer, std::string(what) + " is a null pointer");
  if (is_device_pointer(values))
    throw HcclFailure(kBadParameter, std::string(what) + " is device memory, but must be a host array");
  const uint64_t* first = static_cast<const uint64_t*>(values);
  return {first, first + length};
}

void submit_collective(const std::shared_ptr<Communicator>& communicator, aclrtStream stream, Collective collective,
                       uint64_t bytes) {
  check_host_fault(collective.operation.name);
  communicator->take_buffers();
  collective.operation.number = communicator->next_collective_number();
  std::string call = collective.operation.name;
  submit(communicator, stream, call, bytes,
         [what = std::move(collective)](Communicator& c) { run_collective(c, what); });
}

void submit_transfers(const std::shared_ptr<Communicator>& communicator, aclrtStream stream, const std::string& call,
                      std::vector<Transfer> transfers) {
  check_host_fault(call);
  communicator->take_buffers();
  uint64_t bytes = 0;
  for (const Transfer& transfer : transfers) bytes += transfer.count * element_bytes(transfer.type);
  submit(communicator, stream, call, bytes,
         [call, what = std::move(transfers)](Communicator& c) { run_transfers(c, call, what); });
}

bool group_open() { return group_depth > 0; }

void group_start() { group_depth++; }

void group_end() {
  if (group_depth == 0) throw HcclFailure(kBadParameter, "HcclGroupEnd without HcclGroupStart on this thread");
  if (--group_depth > 0) return;
  std::vector<OpenGroup> groups = std::move(open_groups);
  open_groups.clear();
  for (OpenGroup& group : groups)
    submit_transfers(group.communicator, group.stream, "HcclGroup", std::move(group.transfers));
}

void add_to_group(const std::shared_ptr<Communicator>& communicator, aclrtStream stream, const Transfer& transfer) {
  auto same = [&](const OpenGroup& group) { return group.communicator == communicator && group.stream == stream; };
  auto found = std::find_if(open_groups.begin(), open_groups.end(), same);
  if (found == open_groups.end()) found = open_groups.insert(found, OpenGroup{communicator, stream, {}});
  found->transfers.push_back(transfer);
}

}  // namespace ascend_sim::hccl
