// Layout of the shared segment, joining it, waking and sleeping.
#include "segment.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstring>

#include "environment.h"
#include "process.h"

namespace ascend_sim::hccl {
namespace {

constexpr uint32_t kMagic = 0x41534843;
constexpr double kSlice = 0.2;               // seconds between looks at whether the other processes still live

uint64_t align(uint64_t bytes) { return (bytes + 63) / 64 * 64; }

std::string path_of(const std::string& name) { return "/dev/shm/" + name; }

std::string errno_text() { return std::strerror(errno); }

}  // namespace

struct Segment::Layout {
  uint64_t ranks, slot_bytes, channel_bytes;
  uint64_t operation_bytes, cards, operations, channels, channel_buffers, slots, total;
  Layout(uint64_t n, uint64_t slot, uint64_t channel) : ranks(n), slot_bytes(slot), channel_bytes(channel) {
    operation_bytes = align(sizeof(Operation)) + align(2 * n * sizeof(uint64_t));
    cards = align(sizeof(SegmentHeader));
    operations = cards + n * align(sizeof(RankCard));
    channels = operations + 2 * n * operation_bytes;
    channel_buffers = channels + n * n * align(sizeof(Channel));
    slots = channel_buffers + n * n * channel_bytes;
    total = slots + 2 * n * slot_bytes;
  }
};

RankCard& Segment::card(uint32_t rank) {
  return *reinterpret_cast<RankCard*>(base_ + layout_->cards + rank * align(sizeof(RankCard)));
}

Operation& Segment::operation(uint32_t rank, uint64_t number) {
  return *reinterpret_cast<Operation*>(base_ + layout_->operations +
                                       (2 * rank + number % 2) * layout_->operation_bytes);
}

uint64_t* Segment::send_counts(uint32_t rank, uint64_t number) {
  return reinterpret_cast<uint64_t*>(reinterpret_cast<uint8_t*>(&operation(rank, number)) +
                                     align(sizeof(Operation)));
}

uint64_t* Segment::receive_counts(uint32_t rank, uint64_t number) {
  return send_counts(rank, number) + layout_->ranks;
}

Channel& Segment::channel(uint32_t from, uint32_t to) {
  return *reinterpret_cast<Channel*>(base_ + layout_->channels +
                                     (from * layout_->ranks + to) * align(sizeof(Channel)));
}

uint8_t* Segment::channel_buffer(uint32_t from, uint32_t to) {
  return base_ + layout_->channel_buffers + (from * layout_->ranks + to) * layout_->channel_bytes;
}

uint8_t* Segment::slot(uint32_t rank, uint64_t round) {
  return base_ + layout_->slots + (2 * rank + round % 2) * layout_->slot_bytes;
}

void Segment::pulse() {
  header().pulse.fetch_add(1, std::memory_order_acq_rel);
  syscall(SYS_futex, &header().pulse, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void Segment::sleep(uint32_t seen_pulse, double seconds) {
  timespec limit{static_cast<time_t>(seconds), static_cast<long>((seconds - static_cast<time_t>(seconds)) * 1e9)};
  syscall(SYS_futex, &header().pulse, FUTEX_WAIT, seen_pulse, &limit, nullptr, 0);
}

bool Segment::process_ended(uint32_t rank) {
  RankCard& who = card(rank);
  if (who.state.load(std::memory_order_acquire) < kJoined) return false;
  if (who.pid_namespace != own_pid_namespace()) return false;    // its process ids mean nothing here
  return !process_alive(who.pid, who.start_time);
}

void Segment::abort(int result, int stream_code, const std::string& message) {
  uint32_t healthy = 0;
  if (header().abort_state.compare_exchange_strong(healthy, 1)) {
    header().abort_result = result;
    header().abort_stream_code = stream_code;
    std::snprintf(header().abort_message, sizeof(header().abort_message), "%s", message.c_str());
    header().abort_state.store(2, std::memory_order_release);
  }
  pulse();
}

// Creates the segment under a name of its own and links it to the common name when it is complete, so that no rank
// can see a half-made one; the rank that comes second finds the link taken and opens that.
void Segment::attach(const std::string& name, uint32_t rank_count) {
  uint64_t slot = slot_kilobytes() * 1024;
  uint64_t channel = std::clamp<uint64_t>(align((1 << 20) / (uint64_t{rank_count} * rank_count)), 4096, 65536);
  layout_ = std::make_unique<Layout>(rank_count, slot, std::min(channel, slot));
  std::string draft = name + "_draft" + std::to_string(getpid());
  int file = shm_open(("/" + draft).c_str(), O_RDWR | O_CREAT | O_EXCL, 0600);
  if (file < 0) throw HcclFailure(kSystemCall, "shared memory cannot be created: " + errno_text());
  int error = posix_fallocate(file, 0, static_cast<off_t>(layout_->total));   // else a full /dev/shm ends in SIGBUS
  if (error != 0) {
    close(file);
    shm_unlink(("/" + draft).c_str());
    throw HcclFailure(kSystemCall, "no room in /dev/shm for " + std::to_string(layout_->total) +
                                       " bytes of a communicator: " + std::strerror(error));
  }
  void* made = mmap(nullptr, layout_->total, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  bool first = false;
  if (made != MAP_FAILED) {
    base_ = static_cast<uint8_t*>(made);
    header().magic = kMagic;
    header().rank_count = rank_count;
    header().slot_bytes = layout_->slot_bytes;
    header().channel_bytes = layout_->channel_bytes;
    header().total_bytes = layout_->total;
    first = link(path_of(draft).c_str(), path_of(name).c_str()) == 0;
  }
  int link_error = errno;
  shm_unlink(("/" + draft).c_str());
  if (first) return;
  if (base_ == nullptr) throw HcclFailure(kSystemCall, "shared memory cannot be mapped: " + errno_text());
  munmap(base_, layout_->total);
  base_ = nullptr;
  if (link_error != EEXIST) throw HcclFailure(kSystemCall, "shared memory cannot be named: " + errno_text());

  file = shm_open(("/" + name).c_str(), O_RDWR, 0600);
  struct stat about {};
  if (file < 0 || fstat(file, &about) != 0)
    throw HcclFailure(kSystemCall, "shared memory of the other ranks cannot be opened: " + errno_text());
  void* mapped = mmap(nullptr, about.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (mapped == MAP_FAILED) throw HcclFailure(kSystemCall, "shared memory cannot be mapped: " + errno_text());
  base_ = static_cast<uint8_t*>(mapped);
  uint32_t theirs = header().rank_count;
  layout_ = std::make_unique<Layout>(theirs, header().slot_bytes, header().channel_bytes);
  if (header().magic != kMagic || theirs != rank_count) {
    std::string message = "this rank joins a communicator of " + std::to_string(rank_count) +
                          " ranks, another rank joined it with " + std::to_string(theirs);
    abort(kBadParameter, kStreamInternalError, message);
    throw HcclFailure(kBadParameter, message);
  }
}

Segment::Segment(const std::string& name, uint32_t rank_count, uint32_t rank, double timeout_seconds) {
  attach(name, rank_count);
  try {
    RankCard& mine = card(rank);
    uint32_t absent = kAbsent;
    if (!mine.state.compare_exchange_strong(absent, kJoining))
      throw HcclFailure(kBadParameter, "rank " + std::to_string(rank) + " joins the communicator twice");
    mine.pid = getpid();
    mine.pid_namespace = own_pid_namespace();
    mine.start_time = process_start_time(getpid());
    mine.state.store(kJoined, std::memory_order_release);   // from here on the others may look at the process
    header().joined.fetch_add(1, std::memory_order_acq_rel);
    pulse();
    wait_for_all(rank, timeout_seconds, name);
    shm_unlink(("/" + name).c_str());                      // by every rank; all but one find it gone
  } catch (...) {
    shm_unlink(("/" + name).c_str());
    munmap(base_, layout_->total);
    throw;
  }
}

Segment::~Segment() { munmap(base_, layout_->total); }

void Segment::wait_for_all(uint32_t rank, double timeout_seconds, const std::string& name) {
  auto deadline = std::chrono::steady_clock::now() + std::chrono::duration<double>(timeout_seconds);
  uint32_t count = header().rank_count;
  while (true) {
    uint32_t seen = pulse_now();
    auto complete = [&] { return header().joined.load(std::memory_order_acquire) >= count; };
    if (complete()) return;
    if (aborted()) throw HcclFailure(header().abort_result, header().abort_message);
    std::string missing, ended;
    for (uint32_t r = 0; r < count; r++) {
      bool absent = card(r).state.load(std::memory_order_acquire) < kJoined;
      if (absent) missing += (missing.empty() ? "" : ", ") + std::to_string(r);
      else if (r != rank && process_ended(r)) ended += (ended.empty() ? "" : ", ") + std::to_string(r);
    }
    if (complete()) return;                                // and some rank may be through with its work already
    std::string place = " while rank " + std::to_string(rank) + " created communicator " + name;
    if (!ended.empty()) {
      abort(kRemote, kStreamTaskTimeout, "the process of rank " + ended + " ended" + place);
    } else if (std::chrono::steady_clock::now() >= deadline) {
      abort(kTimeout, kStreamTaskTimeout, "rank " + missing + " of " + std::to_string(count) + " did not come within " +
                                              short_seconds(timeout_seconds) + " s" + place);
    } else {
      sleep(seen, kSlice);
    }
  }
}

}  // namespace ascend_sim::hccl
