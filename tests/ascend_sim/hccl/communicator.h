// One communicator as one rank sees it.
#pragma once
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "hccl_abi.h"
#include "segment.h"

namespace ascend_sim::hccl {

struct Config {
  std::string name;                          // empty: made up from the root information
  uint32_t buffer_megabytes;
  double timeout_seconds;                    // 0: never
};

// Reads the caller's structure (nullptr: defaults and environment).
Config read_config(const void* structure);

class Communicator : public std::enable_shared_from_this<Communicator> {
 public:
  Communicator(const std::string& segment_name, uint32_t rank_count, uint32_t rank, const Config& config);
  ~Communicator();

  // ---- on the host ----
  const std::string& name() const { return name_; }
  uint32_t rank() const { return rank_; }
  uint32_t rank_count() const { return rank_count_; }
  uint64_t buffer_bytes() const { return uint64_t{2} * config_.buffer_megabytes << 20; }
  void take_buffers();                       // 2 x buffer of device memory, at the first operation
  int async_error();
  // The place of an operation in this rank's order; operations run in this order whatever streams they are on. The
  // place is given up when the last copy goes, so that a task that never runs does not block those behind it.
  struct Turn;
  std::shared_ptr<Turn> next_turn();
  uint64_t next_collective_number() { return ++collectives_; }

  // ---- in a running task ----
  Segment& segment() { return segment_; }
  void wait_for_turn(const Turn& turn);
  void begin(const std::string& text);       // what the other ranks read when they miss this one
  void end();
  uint64_t arrive(bool first_round);         // publishes this rank's part of a round; returns the round's number
  void wait_for_round(uint64_t round);
  // Sleeps until done() says so; ends with an error on abort, a dead or departed rank in missing(), a circle of ranks
  // that wait for each other, or when nothing has moved for the time allowed.
  void wait_until(const std::function<bool()>& done, const std::function<std::vector<uint32_t>()>& missing);
  void progressed();                         // starts the time allowed anew
  uint64_t round() const { return rounds_; } // the next round's number
  [[noreturn]] void fail_all(int result, int stream_code, const std::string& message);

 private:
  [[noreturn]] void fail_with_abort_message();
  void look_for_lost_ranks(const std::vector<uint32_t>& missing);
  void look_for_circle();
  [[noreturn]] void time_out(const std::vector<uint32_t>& missing);
  std::string doing(uint32_t rank);

  Config config_;
  std::string name_;
  uint32_t rank_, rank_count_;
  Segment segment_;
  uint64_t collectives_ = 0, rounds_ = 0;
  std::string own_text_;
  double allowed_until_ = 0;

  std::mutex host_mutex_;
  void* buffers_ = nullptr;
  bool buffers_taken_ = false;
  int error_ = 0;

  std::mutex turn_mutex_;
  std::condition_variable turn_changed_;
  uint64_t next_turn_ = 0;
  std::set<uint64_t> open_turns_;            // given out and not yet released
};

struct Communicator::Turn {
  std::shared_ptr<Communicator> owner;
  uint64_t number;
  Turn(std::shared_ptr<Communicator> owner_, uint64_t number_) : owner(std::move(owner_)), number(number_) {}
  ~Turn() { release(); }
  void release();                            // the next operation may go; more than once is the same as once
};

// Handles that callers hold. An unknown handle gives nullptr.
HcclComm register_communicator(std::shared_ptr<Communicator> communicator);
std::shared_ptr<Communicator> find_communicator(HcclComm handle);
bool forget_communicator(HcclComm handle);

}  // namespace ascend_sim::hccl
