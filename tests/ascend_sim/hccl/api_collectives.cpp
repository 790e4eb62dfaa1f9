// HCCL's entry points that move data between all ranks of a communicator.
#include <cstdio>
#include <numeric>

#include "submit.h"

using namespace ascend_sim::hccl;

namespace {

struct Call {
  std::shared_ptr<Communicator> communicator;
  Collective what;
  DataType type;
  uint64_t element;
  uint32_t ranks, rank;

  Call(const char* name, HcclComm handle, uint64_t count, int data_type)
      : communicator(communicator_of(handle)), type(checked_type(data_type)), element(element_bytes(type)),
        ranks(communicator->rank_count()), rank(communicator->rank()) {
    std::snprintf(what.operation.name, sizeof(what.operation.name), "%s", name);
    what.operation.count = count;
    what.operation.data_type = data_type;
    what.operation.reduce = what.operation.root = -1;
  }

  uint64_t bytes() const { return what.operation.count * element; }
  void reduce(int op) { what.operation.reduce = static_cast<int32_t>(checked_reduction(op, type)); }
  bool at_root(uint32_t root) {
    what.operation.root = static_cast<int32_t>(checked_rank(*communicator, root, "the root"));
    return rank == root;
  }
  void submit(aclrtStream stream, uint64_t ledger_bytes) {
    submit_collective(communicator, stream, std::move(what), ledger_bytes);
  }
};

// One span for each rank: `counts` elements at `displacements`.
std::vector<Span> spans(const void* buffer, const char* what, const std::vector<uint64_t>& counts,
                        const std::vector<uint64_t>& displacements, uint64_t element) {
  std::vector<Span> result;
  for (size_t r = 0; r < counts.size(); r++) {
    uint64_t bytes = counts[r] * element;
    void* start = checked_buffer(buffer, bytes, what);
    result.push_back({start == nullptr ? nullptr : static_cast<char*>(start) + displacements[r] * element, bytes});
  }
  return result;
}

std::vector<Span> equal_spans(const void* buffer, const char* what, uint64_t count, uint32_t ranks, uint64_t element) {
  std::vector<uint64_t> displacements(ranks);
  for (uint32_t r = 0; r < ranks; r++) displacements[r] = r * count;
  return spans(buffer, what, std::vector<uint64_t>(ranks, count), displacements, element);
}

Span whole(const void* buffer, uint64_t bytes, const char* what) { return {checked_buffer(buffer, bytes, what), bytes}; }

uint64_t total(const std::vector<uint64_t>& counts) { return std::accumulate(counts.begin(), counts.end(), uint64_t{0}); }

void require_same_type(int send_type, int receive_type) {
  if (send_type != receive_type)
    throw HcclFailure(kBadParameter, std::string("sends ") + type_name(checked_type(send_type)) + " but receives " +
                                         type_name(checked_type(receive_type)) + "; they must be the same");
}

void all_to_all_uneven(Call& call, const void* send, const std::vector<uint64_t>& send_offsets, const void* receive,
                       const std::vector<uint64_t>& receive_offsets, aclrtStream stream) {
  Collective& what = call.what;
  what.operation.send_list = what.operation.receive_list = call.ranks;
  what.personal = true;
  what.outgoing = spans(send, "the send buffer", what.send_counts, send_offsets, call.element);
  what.incoming = spans(receive, "the receive buffer", what.receive_counts, receive_offsets, call.element);
  call.submit(stream, total(what.send_counts) * call.element);
}

}  // namespace

extern "C" {

int HcclAllGather(void* send, void* receive, uint64_t count, int type, HcclComm comm, aclrtStream stream) {
  return guarded("HcclAllGather", [&] {
    Call call("HcclAllGather", comm, count, type);
    call.what.outgoing = {whole(send, call.bytes(), "the send buffer")};
    call.what.incoming = equal_spans(receive, "the receive buffer", count, call.ranks, call.element);
    call.submit(stream, call.bytes());
  });
}

int HcclAllGatherV(void* send, uint64_t count, void* receive, const void* receive_counts, const void* displacements,
                   int type, HcclComm comm, aclrtStream stream) {
  return guarded("HcclAllGatherV", [&] {
    Call call("HcclAllGatherV", comm, count, type);
    call.what.receive_counts = checked_list(receive_counts, call.ranks, "the list of receive counts");
    call.what.operation.receive_list = call.ranks;
    call.what.outgoing = {whole(send, call.bytes(), "the send buffer")};
    call.what.incoming = spans(receive, "the receive buffer", call.what.receive_counts,
                               checked_list(displacements, call.ranks, "the list of displacements"), call.element);
    call.submit(stream, call.bytes());
  });
}

int HcclAllReduce(void* send, void* receive, uint64_t count, int type, int op, HcclComm comm, aclrtStream stream) {
  return guarded("HcclAllReduce", [&] {
    Call call("HcclAllReduce", comm, count, type);
    call.reduce(op);
    call.what.outgoing = {whole(send, call.bytes(), "the send buffer")};
    call.what.incoming = {whole(receive, call.bytes(), "the receive buffer")};
    call.submit(stream, call.bytes());
  });
}

int HcclReduce(void* send, void* receive, uint64_t count, int type, int op, uint32_t root, HcclComm comm,
               aclrtStream stream) {
  return guarded("HcclReduce", [&] {
    Call call("HcclReduce", comm, count, type);
    call.reduce(op);
    call.what.outgoing = {whole(send, call.bytes(), "the send buffer")};
    if (call.at_root(root)) call.what.incoming = {whole(receive, call.bytes(), "the receive buffer")};
    call.submit(stream, call.bytes());
  });
}

int HcclBroadcast(void* buffer, uint64_t count, int type, uint32_t root, HcclComm comm, aclrtStream stream) {
  return guarded("HcclBroadcast", [&] {
    Call call("HcclBroadcast", comm, count, type);
    Span all = whole(buffer, call.bytes(), "the buffer");
    if (call.at_root(root)) {
      call.what.outgoing = {all};
    } else {
      call.what.incoming.resize(call.ranks);
      call.what.incoming[root] = all;
    }
    call.submit(stream, call.bytes());
  });
}

int HcclScatter(void* send, void* receive, uint64_t count, int type, uint32_t root, HcclComm comm, aclrtStream stream) {
  return guarded("HcclScatter", [&] {
    Call call("HcclScatter", comm, count, type);
    bool sends = call.at_root(root);
    call.what.personal = true;
    if (sends) call.what.outgoing = equal_spans(send, "the send buffer", count, call.ranks, call.element);
    call.what.incoming.resize(call.ranks);
    call.what.incoming[root] = whole(receive, call.bytes(), "the receive buffer");
    call.submit(stream, call.bytes() * (sends ? call.ranks : 1));
  });
}

int HcclReduceScatter(void* send, void* receive, uint64_t count, int type, int op, HcclComm comm, aclrtStream stream) {
  return guarded("HcclReduceScatter", [&] {
    Call call("HcclReduceScatter", comm, count, type);
    call.reduce(op);
    call.what.personal = true;
    call.what.outgoing = equal_spans(send, "the send buffer", count, call.ranks, call.element);
    call.what.incoming = {whole(receive, call.bytes(), "the receive buffer")};
    call.submit(stream, call.bytes() * call.ranks);
  });
}

int HcclReduceScatterV(void* send, const void* send_counts, const void* displacements, void* receive, uint64_t count,
                       int type, int op, HcclComm comm, aclrtStream stream) {
  return guarded("HcclReduceScatterV", [&] {
    Call call("HcclReduceScatterV", comm, count, type);
    call.reduce(op);
    call.what.personal = true;
    call.what.send_counts = checked_list(send_counts, call.ranks, "the list of send counts");
    call.what.operation.send_list = call.ranks;
    call.what.outgoing = spans(send, "the send buffer", call.what.send_counts,
                               checked_list(displacements, call.ranks, "the list of displacements"), call.element);
    call.what.incoming = {whole(receive, call.bytes(), "the receive buffer")};
    call.submit(stream, total(call.what.send_counts) * call.element);
  });
}

int HcclAlltoAll(const void* send, uint64_t send_count, int send_type, const void* receive, uint64_t receive_count,
                 int receive_type, HcclComm comm, aclrtStream stream) {
  return guarded("HcclAlltoAll", [&] {
    Call call("HcclAlltoAll", comm, send_count, send_type);
    require_same_type(send_type, receive_type);
    if (send_count != receive_count)
      throw HcclFailure(kBadParameter, "sends " + std::to_string(send_count) + " elements to every rank but receives " +
                                           std::to_string(receive_count) + "; they must be the same");
    call.what.personal = true;
    call.what.outgoing = equal_spans(send, "the send buffer", send_count, call.ranks, call.element);
    call.what.incoming = equal_spans(receive, "the receive buffer", receive_count, call.ranks, call.element);
    call.submit(stream, call.bytes() * call.ranks);
  });
}

int HcclAlltoAllV(const void* send, const void* send_counts, const void* send_displacements, int send_type,
                  const void* receive, const void* receive_counts, const void* receive_displacements, int receive_type,
                  HcclComm comm, aclrtStream stream) {
  return guarded("HcclAlltoAllV", [&] {
    Call call("HcclAlltoAllV", comm, 0, send_type);
    require_same_type(send_type, receive_type);
    call.what.send_counts = checked_list(send_counts, call.ranks, "the list of send counts");
    call.what.receive_counts = checked_list(receive_counts, call.ranks, "the list of receive counts");
    all_to_all_uneven(call, send, checked_list(send_displacements, call.ranks, "the list of send displacements"),
                      receive, checked_list(receive_displacements, call.ranks, "the list of receive displacements"),
                      stream);
  });
}

// The same with one matrix of counts, row r being what rank r sends, and data without gaps.
int HcclAlltoAllVC(const void* send, const void* count_matrix, int send_type, const void* receive, int receive_type,
                   HcclComm comm, aclrtStream stream) {
  return guarded("HcclAlltoAllVC", [&] {
    Call call("HcclAlltoAllVC", comm, 0, send_type);
    require_same_type(send_type, receive_type);
    std::vector<uint64_t> matrix = checked_list(count_matrix, call.ranks * call.ranks, "the matrix of counts");
    std::vector<uint64_t> send_offsets(call.ranks), receive_offsets(call.ranks);
    for (uint32_t r = 0; r < call.ranks; r++) {
      send_offsets[r] = total(call.what.send_counts);
      receive_offsets[r] = total(call.what.receive_counts);
      call.what.send_counts.push_back(matrix[call.rank * call.ranks + r]);
      call.what.receive_counts.push_back(matrix[r * call.ranks + call.rank]);
    }
    all_to_all_uneven(call, send, send_offsets, receive, receive_offsets, stream);
  });
}

int HcclBarrier(HcclComm comm, aclrtStream stream) {
  return guarded("HcclBarrier", [&] {
    Call call("HcclBarrier", comm, 0, static_cast<int>(DataType::int8));
    call.submit(stream, 0);
  });
}

}  // extern "C"
