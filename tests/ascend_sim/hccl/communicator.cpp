// One communicator as one rank sees it: configuration, device memory, order of operations, errors.
#include "communicator.h"

#include <cstdio>
#include <cstring>
#include <map>

#include "ascend_sim/runtime.h"
#include "environment.h"

namespace ascend_sim::hccl {
namespace {

template <class T>
T field(const void* structure, size_t offset) {
  T value;
  std::memcpy(&value, static_cast<const char*>(structure) + offset, sizeof(T));
  return value;
}

// The configuration's own value would come first, but the override exists to shorten tests of code that sets one.
double effective_timeout(double configured) {
  if (auto seconds = timeout_override()) return *seconds;
  return configured >= 0 ? configured : exec_timeout_seconds();
}

struct Registry {
  std::mutex mutex;
  std::map<HcclComm, std::shared_ptr<Communicator>> communicators;
};

Registry& registry() {
  static Registry* made = new Registry;      // never destroyed: tasks may still run while the process ends
  return *made;
}

}  // namespace

Config read_config(const void* structure) {
  using namespace config_layout;
  Config config{"", buffer_megabytes(), effective_timeout(-1)};
  if (structure == nullptr) return config;
  uint64_t size = field<uint64_t>(structure, kSize);
  if (field<uint32_t>(structure, kMagic) != kMagicWord || size < kSmallest || size > 65536)
    throw HcclFailure(kBadParameter, "the configuration of a communicator was not initialised with HcclCommConfigInit");
  uint32_t megabytes = field<uint32_t>(structure, kBufferMegabytes);
  if (megabytes == 0)
    throw HcclFailure(kBadParameter, "hcclBufferSize is 0, but must be at least 1 (MB)");
  if (megabytes != kNotSet) config.buffer_megabytes = megabytes;
  if (size >= kName + kCommNameBytes) {
    const char* name = static_cast<const char*>(structure) + kName;
    config.name.assign(name, strnlen(name, kCommNameBytes - 1));
  }
  if (size >= kExecTimeoutSeconds + sizeof(int32_t)) {
    int32_t seconds = field<int32_t>(structure, kExecTimeoutSeconds);
    if (seconds != static_cast<int32_t>(kNotSet)) config.timeout_seconds = effective_timeout(seconds);
  }
  return config;
}

Communicator::Communicator(const std::string& segment_name, uint32_t rank_count, uint32_t rank, const Config& config)
    : config_(config), name_(config.name.empty() ? segment_name : config.name), rank_(rank), rank_count_(rank_count),
      segment_(segment_name, rank_count, rank, connect_timeout_seconds()) {
  note("communicators_created");
  note("communicators_created " + name_);
}

Communicator::~Communicator() {
  segment_.card(rank_).state.store(kLeft, std::memory_order_release);
  segment_.pulse();
  if (buffers_ != nullptr) device_release(buffers_);
}

void Communicator::take_buffers() {
  std::lock_guard<std::mutex> lock(host_mutex_);
  if (buffers_taken_) return;
  buffers_ = device_allocate(buffer_bytes(), "communicator " + name_);
  if (buffers_ == nullptr)
    throw HcclFailure(kOutOfMemory, "EL0004: Failed to allocate the buffers of communicator " + name_ + ": 2 x " +
                                        std::to_string(config_.buffer_megabytes) +
                                        " MB of device memory, at its first operation. Fewer communicators, or a "
                                        "smaller HCCL_BUFFSIZE or hccl_buffer_size, need less.");
  buffers_taken_ = true;
  note("communicator_buffer_bytes", buffer_bytes());
  note("communicator_buffer_bytes " + name_, buffer_bytes());
}

int Communicator::async_error() {
  {
    std::lock_guard<std::mutex> lock(host_mutex_);
    if (error_ != 0) return error_;
  }
  return segment_.aborted() ? segment_.header().abort_result : static_cast<int>(kSuccess);
}

std::shared_ptr<Communicator::Turn> Communicator::next_turn() {
  std::lock_guard<std::mutex> lock(turn_mutex_);
  open_turns_.insert(next_turn_);
  return std::make_shared<Turn>(shared_from_this(), next_turn_++);
}

void Communicator::Turn::release() {
  std::lock_guard<std::mutex> lock(owner->turn_mutex_);
  owner->open_turns_.erase(number);
  owner->turn_changed_.notify_all();
}

void Communicator::fail_all(int result, int stream_code, const std::string& message) {
  segment_.abort(result, stream_code, message);
  while (!segment_.aborted()) segment_.sleep(segment_.pulse_now(), 0.001);    // another rank is writing its message
  fail_with_abort_message();
}

void Communicator::fail_with_abort_message() {
  std::string message = segment_.header().abort_message;
  {
    std::lock_guard<std::mutex> lock(host_mutex_);
    if (error_ == 0)
      std::fprintf(stderr, "[ascend_sim] simulated HCCL, rank %u of communicator %s: %s\n", rank_, name_.c_str(),
                   message.c_str());
    error_ = segment_.header().abort_result;
  }
  throw DeviceError(segment_.header().abort_stream_code, "simulated HCCL: " + message);
}

HcclComm register_communicator(std::shared_ptr<Communicator> communicator) {
  HcclComm handle = communicator.get();
  std::lock_guard<std::mutex> lock(registry().mutex);
  registry().communicators[handle] = std::move(communicator);
  return handle;
}

std::shared_ptr<Communicator> find_communicator(HcclComm handle) {
  std::lock_guard<std::mutex> lock(registry().mutex);
  auto found = registry().communicators.find(handle);
  return found == registry().communicators.end() ? nullptr : found->second;
}

bool forget_communicator(HcclComm handle) {
  std::shared_ptr<Communicator> last;        // destroyed outside the lock
  std::lock_guard<std::mutex> lock(registry().mutex);
  auto found = registry().communicators.find(handle);
  if (found == registry().communicators.end()) return false;
  last = std::move(found->second);
  registry().communicators.erase(found);
  return true;
}

}  // namespace ascend_sim::hccl
