// The shared memory of one communicator: who takes part, what each rank is doing, and fixed-size slots for the data.
// Everything in it is either written by one rank and published by an atomic counter, or an atomic itself, so a process
// that dies at any point cannot leave a lock behind.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "hccl_abi.h"

namespace ascend_sim::hccl {

// An HCCL call that fails on the host, with the code it returns.
struct HcclFailure : std::runtime_error {
  int code;
  HcclFailure(int code_, const std::string& message) : std::runtime_error(message), code(code_) {}
};

struct SegmentHeader {
  uint32_t magic;
  uint32_t rank_count;
  uint64_t slot_bytes;                       // of one half of one rank's slot
  uint64_t channel_bytes;                    // of one point-to-point buffer
  uint64_t total_bytes;
  std::atomic<uint32_t> joined;
  std::atomic<uint32_t> pulse;               // futex word, counted up at every event that a rank may wait for
  std::atomic<uint64_t> arrivals;            // of all ranks at all rounds
  std::atomic<uint32_t> abort_state;         // 0 healthy, 1 being written, 2 failed: the three fields below hold
  int32_t abort_result;
  int32_t abort_stream_code;
  char abort_message[3072];
};

enum RankState : uint32_t { kAbsent, kJoining, kJoined, kLeft };

struct RankCard {
  std::atomic<uint32_t> state;
  int32_t pid;
  uint64_t pid_namespace;
  uint64_t start_time;                       // of the process, so that a reused process id is not taken for it
  std::atomic<uint64_t> arrived;             // rounds this rank has arrived at
  std::atomic<uint64_t> entry_round;         // the first round of the collective it entered last
  std::atomic<uint64_t> entered;             // operations begun on this communicator
  std::atomic<uint64_t> finished;            // operations ended
  char text[2][512];                         // what operation number `entered` is, by parity
};

// What a rank hands in with a collective; its lists of counts follow in the segment.
struct Operation {
  char name[32];
  uint64_t number;                           // of collectives on this communicator, from 1
  uint64_t count;
  int32_t data_type;
  int32_t reduce;                            // -1 where nothing is reduced
  int32_t root;                              // -1 where there is none
  uint32_t send_list;                        // how many entries of the lists are used: 0 or rank_count
  uint32_t receive_list;
};

// One direction between two ranks: a single buffer, filled by the sender and emptied by the receiver.
struct Channel {
  std::atomic<uint64_t> sends_started, receives_started;   // messages
  std::atomic<uint64_t> filled, emptied;                   // chunks
  uint64_t message_bytes, count, chunk_bytes;              // of the message the chunk belongs to
  int32_t data_type;
  char sender_text[512];
};

class Segment {
 public:
  // Opens or creates the segment and waits until all ranks have joined; the name is gone from the file system after it.
  Segment(const std::string& name, uint32_t rank_count, uint32_t rank, double timeout_seconds);
  ~Segment();
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  SegmentHeader& header() { return *reinterpret_cast<SegmentHeader*>(base_); }
  RankCard& card(uint32_t rank);
  Operation& operation(uint32_t rank, uint64_t number);
  uint64_t* send_counts(uint32_t rank, uint64_t number);
  uint64_t* receive_counts(uint32_t rank, uint64_t number);
  Channel& channel(uint32_t from, uint32_t to);
  uint8_t* channel_buffer(uint32_t from, uint32_t to);
  uint8_t* slot(uint32_t rank, uint64_t round);            // two halves, used in turn

  uint32_t pulse_now() { return header().pulse.load(std::memory_order_acquire); }
  void pulse();                                            // wakes all that sleep
  void sleep(uint32_t seen_pulse, double seconds);         // returns at once when the pulse has moved on

  bool process_ended(uint32_t rank);                       // joined, and its process is no more
  // Marks the communicator as failed, once: later calls keep the first message.
  void abort(int result, int stream_code, const std::string& message);
  bool aborted() { return header().abort_state.load(std::memory_order_acquire) == 2; }

 private:
  struct Layout;
  void attach(const std::string& name, uint32_t rank_count);
  void wait_for_all(uint32_t rank, double timeout_seconds, const std::string& name);
  uint8_t* base_ = nullptr;
  std::unique_ptr<Layout> layout_;
};

// A name that no other communicator of this machine has, and removal of what killed processes may have left.
std::string new_segment_name();
bool is_segment_name(const std::string& name);
void remove_abandoned_segments();

}  // namespace ascend_sim::hccl
