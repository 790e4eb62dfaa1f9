// How a rank waits for the others, and what it finds out while they do not come.
#include <chrono>

#include "ascend_sim/runtime.h"
#include "communicator.h"
#include "environment.h"

namespace ascend_sim::hccl {
namespace {

constexpr double kSlice = 0.1;               // seconds of sleep between looks at the other ranks

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

void Communicator::begin(const std::string& text) {
  own_text_ = text;
  RankCard& mine = segment_.card(rank_);
  uint64_t number = mine.entered.load(std::memory_order_relaxed) + 1;
  std::snprintf(mine.text[number % 2], sizeof(mine.text[0]), "%s", text.c_str());
  mine.entered.store(number, std::memory_order_release);
}

void Communicator::end() {
  RankCard& mine = segment_.card(rank_);
  mine.finished.store(mine.entered.load(std::memory_order_relaxed), std::memory_order_release);
}

std::string Communicator::doing(uint32_t rank) {
  RankCard& card = segment_.card(rank);
  uint64_t entered = card.entered.load(std::memory_order_acquire);
  std::string who = "rank " + std::to_string(rank) + ": ";
  if (entered == 0) return who + "nothing yet on this communicator";
  bool finished = card.finished.load(std::memory_order_acquire) >= entered;
  return who + card.text[entered % 2] + (finished ? " (its last one, ended)" : "");
}

void Communicator::wait_for_turn(const Turn& turn) {
  double until = now() + config_.timeout_seconds;
  std::unique_lock<std::mutex> lock(turn_mutex_);
  while (*open_turns_.begin() != turn.number) {
    if (segment_.aborted() || shutting_down()) break;
    if (config_.timeout_seconds > 0 && now() >= until) {
      lock.unlock();
      fail_all(kTimeout, kStreamTaskTimeout,
               "rank " + std::to_string(rank_) + " of communicator " + name_ + " has operations on several streams, and one " +
                   "of them cannot run because an earlier one, on another stream, has not ended within " +
                   short_seconds(config_.timeout_seconds) + " s");
    }
    turn_changed_.wait_for(lock, std::chrono::duration<double>(kSlice));
  }
  lock.unlock();
  if (segment_.aborted()) fail_with_abort_message();
}

uint64_t Communicator::arrive(bool first_round) {
  RankCard& mine = segment_.card(rank_);
  uint64_t round = rounds_++;
  if (first_round) mine.entry_round.store(round + 1, std::memory_order_release);
  mine.arrived.store(round + 1, std::memory_order_release);
  uint64_t before = segment_.header().arrivals.fetch_add(1, std::memory_order_acq_rel);
  if (before + 1 == (round + 1) * rank_count_) segment_.pulse();    // the last one wakes the others
  return round;
}

void Communicator::wait_for_round(uint64_t round) {
  uint64_t all = (round + 1) * rank_count_;
  wait_until([&] { return segment_.header().arrivals.load(std::memory_order_acquire) >= all; },
             [&] {
               std::vector<uint32_t> missing;
               for (uint32_t r = 0; r < rank_count_; r++)
                 if (segment_.card(r).arrived.load(std::memory_order_acquire) <= round) missing.push_back(r);
               return missing;
             });
}

void Communicator::progressed() { allowed_until_ = now() + config_.timeout_seconds; }

void Communicator::wait_until(const std::function<bool()>& done,
                              const std::function<std::vector<uint32_t>()>& missing) {
  progressed();
  double next_look = now() + kSlice;
  while (true) {
    uint32_t seen = segment_.pulse_now();    // before done(): an event after it ends the sleep at once
    if (segment_.aborted()) fail_with_abort_message();
    if (done()) return;
    if (shutting_down()) throw DeviceError(kStreamInternalError, "the process ends while it waits in " + own_text_);
    double time = now();
    if (time >= next_look) {
      std::vector<uint32_t> absent = missing();
      look_for_lost_ranks(absent);
      look_for_circle();
      if (config_.timeout_seconds > 0 && time >= allowed_until_ && !absent.empty()) time_out(absent);
      next_look = time + kSlice;
    }
    segment_.sleep(seen, kSlice);
  }
}

void Communicator::look_for_lost_ranks(const std::vector<uint32_t>& missing) {
  for (uint32_t r : missing) {
    if (r == rank_) continue;
    bool left = segment_.card(r).state.load(std::memory_order_acquire) == kLeft;
    bool ended = segment_.process_ended(r);
    if (!left && !ended) continue;
    fail_all(kRemote, kStreamTaskTimeout,
             "rank " + std::to_string(r) + (ended ? " has died: its process (" + std::to_string(segment_.card(r).pid) +
                                                        ") has ended"
                                                  : " has destroyed the communicator") +
                 ", while rank " + std::to_string(rank_) + " waits for it in " + own_text_ + "; " + doing(r) +
                 ". Communicator " + name_ + " of " + std::to_string(rank_count_) + " ranks.");
  }
}

// Rank a needs a step that rank b can only take in an operation it has not begun. Operations of one communicator run
// one after the other on a rank, so ranks that need each other in a circle will never go on: the real HCCL hangs.
// Every condition is a comparison of counters that only b can change, and b does so only by beginning an operation,
// which makes a circle, once seen, final.
void Communicator::look_for_circle() {
  auto needs = [&](uint32_t a, uint32_t b) {
    if (segment_.card(b).arrived.load() < segment_.card(a).entry_round.load()) return true;
    Channel& out = segment_.channel(a, b);
    if (out.sends_started.load() > out.receives_started.load()) return true;
    Channel& in = segment_.channel(b, a);
    return in.receives_started.load() > in.sends_started.load();
  };
  std::vector<int> came_from(rank_count_, -1);
  std::vector<uint32_t> open{rank_};
  while (!open.empty()) {
    uint32_t a = open.back();
    open.pop_back();
    for (uint32_t b = 0; b < rank_count_; b++) {
      if (a == b || !needs(a, b)) continue;
      if (b == rank_) {
        std::string circle = doing(rank_), order = std::to_string(rank_);
        for (uint32_t r = a; r != rank_; r = came_from[r]) {
          circle += "; " + doing(r);
          order = std::to_string(r) + ", " + order;
        }
        fail_all(kInternal, kStreamInternalError,
                 "ranks " + order + " of communicator " + name_ + " wait for each other in operations that do not match (" +
                     circle + "). The real HCCL would hang here.");
      }
      if (came_from[b] < 0) {
        came_from[b] = static_cast<int>(a);
        open.push_back(b);
      }
    }
  }
}

void Communicator::time_out(const std::vector<uint32_t>& missing) {
  std::string ranks, states;
  for (uint32_t r : missing) {
    ranks += (ranks.empty() ? "" : ", ") + std::to_string(r);
    states += "; " + doing(r);
  }
  fail_all(kTimeout, kStreamTaskTimeout,
           "rank " + ranks + " did not arrive within " + short_seconds(config_.timeout_seconds) + " s at " + own_text_ +
               ", where rank " + std::to_string(rank_) + " waits for it" + states + ". Communicator " + name_ + " of " +
               std::to_string(rank_count_) + " ranks.");
}

}  // namespace ascend_sim::hccl
