// Compares what the ranks handed in with a collective. Every rank compares the same shared facts in the same order, so
// all come to the same message.
#include "agreement.h"

#include <algorithm>
#include <cstring>

#include "collective.h"

namespace ascend_sim::hccl {
namespace {

std::string list(const uint64_t* counts, uint32_t length) {
  std::string text = "[";
  for (uint32_t i = 0; i < length; i++) {
    if (i == 16) return text + ", ...]";
    text += (i ? ", " : "") + std::to_string(counts[i]);
  }
  return text + "]";
}

// Lists that the caller gives on every rank alike (AllGatherV's receive counts) or whose rows and columns must fit
// (AlltoAllV): in both cases what r says it sends to d must be what d says it receives from r.
struct Sides {
  Communicator& communicator;
  uint64_t number;

  const Operation& operation(uint32_t r) { return communicator.segment().operation(r, number); }
  uint64_t bytes(uint32_t r, uint64_t count) {
    return count * element_bytes(static_cast<DataType>(operation(r).data_type));
  }
  uint64_t sent(uint32_t from, uint32_t to) {
    bool listed = operation(from).send_list != 0;
    return bytes(from, listed ? communicator.segment().send_counts(from, number)[to] : operation(from).count);
  }
  uint64_t received(uint32_t at, uint32_t from) {
    bool listed = operation(at).receive_list != 0;
    return bytes(at, listed ? communicator.segment().receive_counts(at, number)[from] : operation(at).count);
  }
  std::string text(uint32_t r) {
    return "rank " + std::to_string(r) + ": " +
           describe(operation(r), communicator.segment().send_counts(r, number),
                    communicator.segment().receive_counts(r, number));
  }
};

bool uneven(const Operation& operation) { return operation.send_list != 0 || operation.receive_list != 0; }

bool same_operation(const Operation& a, const Operation& b) {
  return std::strcmp(a.name, b.name) == 0 && a.number == b.number && a.data_type == b.data_type &&
         a.reduce == b.reduce && a.root == b.root && (uneven(a) || a.count == b.count);
}

}  // namespace

std::string describe(const Operation& operation, const uint64_t* send_counts, const uint64_t* receive_counts) {
  std::string text = std::string(operation.name) + " number " + std::to_string(operation.number);
  if (operation.send_list == 0 || operation.receive_list == 0) text += ", count " + std::to_string(operation.count);
  if (operation.send_list != 0) text += ", send counts " + list(send_counts, operation.send_list);
  if (operation.receive_list != 0) text += ", receive counts " + list(receive_counts, operation.receive_list);
  text += std::string(", ") + type_name(static_cast<DataType>(operation.data_type));
  if (operation.reduce >= 0) text += std::string(", ") + reduce_name(static_cast<ReduceOp>(operation.reduce));
  if (operation.root >= 0) text += ", root " + std::to_string(operation.root);
  return text;
}

std::string find_difference(Communicator& communicator, uint64_t number) {
  Sides sides{communicator, number};
  uint32_t ranks = communicator.rank_count();
  std::string where = " in communicator " + communicator.name() + " of " + std::to_string(ranks) + " ranks: ";
  constexpr const char* kOutcome = ". The real HCCL would hang here or give wrong data.";
  std::string different;
  uint32_t reported = 0;
  for (uint32_t r = 1; r < ranks; r++)
    if (!same_operation(sides.operation(0), sides.operation(r)) && ++reported <= 4) different += "; " + sides.text(r);
  if (reported > 0)
    return "the ranks entered different collectives" + where + sides.text(0) + different +
           (reported > 4 ? "; and " + std::to_string(reported - 4) + " more ranks" : "") + kOutcome;
  if (!uneven(sides.operation(0))) return "";
  for (uint32_t from = 0; from < ranks; from++)
    for (uint32_t to = 0; to < ranks; to++)
      if (sides.sent(from, to) != sides.received(to, from))
        return "rank " + std::to_string(from) + " sends " + std::to_string(sides.sent(from, to)) + " bytes to rank " +
               std::to_string(to) + ", which expects " + std::to_string(sides.received(to, from)) + where +
               sides.text(from) + (from == to ? "" : "; " + sides.text(to)) + kOutcome;
  return "";
}

uint64_t longest_transfer(Communicator& communicator, uint64_t number) {
  Sides sides{communicator, number};
  uint64_t longest = 0;
  for (uint32_t from = 0; from < communicator.rank_count(); from++)
    for (uint32_t to = 0; to < communicator.rank_count(); to++) longest = std::max(longest, sides.sent(from, to));
  return longest;
}

}  // namespace ascend_sim::hccl
