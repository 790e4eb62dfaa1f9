// HCCL's entry points between two ranks, and groups of them.
#include "submit.h"

using namespace ascend_sim::hccl;

namespace {

void check_direction(int direction) {
  if (direction != 0 && direction != 1)
    throw HcclFailure(kBadParameter, "item direction " + std::to_string(direction) + "; allowed: 0 (send), 1 (receive)");
}

Transfer transfer_of(const Communicator& communicator, bool send, void* buffer, uint64_t count, int type,
                     uint32_t peer) {
  DataType checked = checked_type(type);
  return {send, checked_rank(communicator, peer, send ? "the destination" : "the source"),
          checked_buffer(buffer, count * element_bytes(checked), send ? "the send buffer" : "the receive buffer"), count,
          checked};
}

int one(const char* call, bool send, void* buffer, uint64_t count, int type, uint32_t peer, HcclComm comm,
        aclrtStream stream) {
  return guarded(call, [&] {
    std::shared_ptr<Communicator> communicator = communicator_of(comm);
    Transfer transfer = transfer_of(*communicator, send, buffer, count, type, peer);
    if (group_open()) return add_to_group(communicator, stream, transfer);
    if (peer == communicator->rank())
      throw HcclFailure(kBadParameter, "rank " + std::to_string(peer) + (send ? " sends to" : " receives from") +
                                           " itself outside a group, which would wait for ever");
    submit_transfers(communicator, stream, call, {transfer});
  });
}

}  // namespace

extern "C" {

int HcclSend(void* buffer, uint64_t count, int type, uint32_t destination, HcclComm comm, aclrtStream stream) {
  return one("HcclSend", true, buffer, count, type, destination, comm, stream);
}

int HcclRecv(void* buffer, uint64_t count, int type, uint32_t source, HcclComm comm, aclrtStream stream) {
  return one("HcclRecv", false, buffer, count, type, source, comm, stream);
}

int HcclBatchSendRecv(SendRecvItem* items, uint32_t item_count, HcclComm comm, aclrtStream stream) {
  return guarded("HcclBatchSendRecv", [&] {
    std::shared_ptr<Communicator> communicator = communicator_of(comm);
    if (items == nullptr || item_count == 0) throw HcclFailure(kBadParameter, "there are no items");
    std::vector<Transfer> transfers;
    for (uint32_t i = 0; i < item_count; i++) {
      const SendRecvItem& item = items[i];
      check_direction(item.direction);
      transfers.push_back(transfer_of(*communicator, item.direction == 0, item.buffer, item.count, item.data_type,
                                      item.remote_rank));
    }
    submit_transfers(communicator, stream, "HcclBatchSendRecv", std::move(transfers));
  });
}

int HcclGroupStart() {
  return guarded("HcclGroupStart", [] { group_start(); });
}

int HcclGroupEnd() {
  return guarded("HcclGroupEnd", [] { group_end(); });
}

}  // extern "C"
