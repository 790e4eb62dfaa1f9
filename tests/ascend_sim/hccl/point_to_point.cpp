// Each ordered pair of ranks has one buffer. A sender fills it when it is empty, a receiver empties it when it is full;
// messages of a pair go in the order in which they were given. A send ends when the receiver has taken its last part, as
// nobody should rely on buffering that the real HCCL does not promise.
#include "point_to_point.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>

#include "ascend_sim/runtime.h"

namespace ascend_sim::hccl {
namespace {

struct Moving {
  const Transfer* transfer;
  uint64_t bytes;
  uint64_t done = 0;                         // bytes put into or taken from the buffer
  bool begun = false;
};

class Batch {
 public:
  Batch(Communicator& communicator, const std::string& text, const std::vector<Transfer>& transfers)
      : communicator_(communicator), segment_(communicator.segment()), me_(communicator.rank()), text_(text) {
    for (const Transfer& transfer : transfers) {
      Moving moving{&transfer, transfer.count * element_bytes(transfer.type)};
      if (transfer.peer == me_) {
        (transfer.send ? own_sends_ : own_receives_).push_back(moving);
        continue;
      }
      queues_[{transfer.peer, transfer.send}].push_back(moving);
      Channel& channel = channel_to(transfer.peer, transfer.send);
      (transfer.send ? channel.sends_started : channel.receives_started).fetch_add(1, std::memory_order_acq_rel);
    }
    segment_.pulse();
  }

  // What a rank sends to itself within a batch never leaves it.
  void copy_own() {
    if (own_sends_.size() != own_receives_.size())
      communicator_.fail_all(kInternal, kStreamInternalError, "rank " + std::to_string(me_) + " sends to itself " +
          std::to_string(own_sends_.size()) + " times and receives from itself " +
          std::to_string(own_receives_.size()) + " times in one batch: " + text_);
    for (size_t i = 0; i < own_sends_.size(); i++) {
      const Transfer &from = *own_sends_[i].transfer, &to = *own_receives_[i].transfer;
      if (from.count != to.count || from.type != to.type)
        communicator_.fail_all(kInternal, kStreamInternalError, "rank " + std::to_string(me_) + " " + describe(from) +
                                                                    " but " + describe(to) + ", both itself");
      std::memmove(kernel_view(to.buffer), kernel_view(from.buffer), own_sends_[i].bytes);
    }
  }

  // Does all that can be done now; true when nothing is left.
  bool go_on() {
    bool moved = false;
    for (auto& [key, queue] : queues_)
      while (!queue.empty() && (key.second ? step_send(queue) : step_receive(queue))) moved = true;
    std::erase_if(queues_, [](const auto& entry) { return entry.second.empty(); });
    if (moved) {
      communicator_.progressed();
      segment_.pulse();
    }
    return queues_.empty();
  }

  std::vector<uint32_t> missing() const {
    std::vector<uint32_t> peers;
    for (const auto& [key, queue] : queues_)
      if (peers.empty() || peers.back() != key.first) peers.push_back(key.first);
    return peers;
  }

 private:
  Channel& channel_to(uint32_t peer, bool send) { return send ? segment_.channel(me_, peer) : segment_.channel(peer, me_); }

  // True when something was done.
  bool step_send(std::deque<Moving>& queue) {
    Moving& moving = queue.front();
    const Transfer& transfer = *moving.transfer;
    Channel& channel = channel_to(transfer.peer, true);
    uint64_t filled = channel.filled.load(std::memory_order_relaxed);
    if (channel.emptied.load(std::memory_order_acquire) != filled) return false;
    if (moving.begun && moving.done == moving.bytes) {           // its last part has been taken
      queue.pop_front();
      return true;
    }
    moving.begun = true;
    channel.message_bytes = moving.bytes;
    channel.count = transfer.count;
    channel.data_type = static_cast<int32_t>(transfer.type);
    channel.chunk_bytes = std::min(segment_.header().channel_bytes, moving.bytes - moving.done);
    std::snprintf(channel.sender_text, sizeof(channel.sender_text), "%s", describe(transfer).c_str());
    if (channel.chunk_bytes != 0)
      std::memcpy(segment_.channel_buffer(me_, transfer.peer),
                  static_cast<char*>(kernel_view(transfer.buffer)) + moving.done, channel.chunk_bytes);
    moving.done += channel.chunk_bytes;
    channel.filled.store(filled + 1, std::memory_order_release);
    return true;
  }

  bool step_receive(std::deque<Moving>& queue) {
    Moving& moving = queue.front();
    const Transfer& transfer = *moving.transfer;
    Channel& channel = channel_to(transfer.peer, false);
    uint64_t emptied = channel.emptied.load(std::memory_order_relaxed);
    if (channel.filled.load(std::memory_order_acquire) == emptied) return false;
    if (channel.count != transfer.count || channel.data_type != static_cast<int32_t>(transfer.type))
      communicator_.fail_all(
          kInternal, kStreamInternalError,
          "a send and its receive do not fit in communicator " + communicator_.name() + ": rank " +
              std::to_string(transfer.peer) + " " + channel.sender_text + ", rank " + std::to_string(me_) + " " +
              describe(transfer) + ". The real HCCL would hang here or give wrong data.");
    if (channel.chunk_bytes != 0)
      std::memcpy(static_cast<char*>(kernel_view(transfer.buffer)) + moving.done,
                  segment_.channel_buffer(transfer.peer, me_), channel.chunk_bytes);
    moving.done += channel.chunk_bytes;
    channel.emptied.store(emptied + 1, std::memory_order_release);
    if (moving.done == moving.bytes) queue.pop_front();
    return true;
  }

  Communicator& communicator_;
  Segment& segment_;
  uint32_t me_;
  const std::string& text_;
  std::vector<Moving> own_sends_, own_receives_;
  std::map<std::pair<uint32_t, bool>, std::deque<Moving>> queues_;   // by peer and whether this rank sends
};

}  // namespace

std::string describe(const Transfer& transfer) {
  return (transfer.send ? "sends " : "receives ") + std::to_string(transfer.count) + " " + type_name(transfer.type) +
         (transfer.send ? " to rank " : " from rank ") + std::to_string(transfer.peer);
}

void run_transfers(Communicator& communicator, const std::string& name, const std::vector<Transfer>& transfers) {
  std::string text = name + " (";
  for (size_t i = 0; i < transfers.size(); i++) {
    if (i == 6) {
      text += ", ...";
      break;
    }
    text += (i ? ", " : "") + describe(transfers[i]);
  }
  text += ")";
  communicator.begin(text);
  Batch batch(communicator, text, transfers);
  batch.copy_own();
  communicator.wait_until([&] { return batch.go_on(); }, [&] { return batch.missing(); });
  communicator.end();
}

}  // namespace ascend_sim::hccl
