#include "device_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <stdexcept>

#include "ascend_sim/cann.h"
#include "device_fault_handler.h"
#include "faults.h"
#include "settings.h"

namespace ascend_sim {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kHugePage = size_t(2) << 20;
constexpr size_t kPoisonBytes = size_t(4) << 20;  // one mapping per this much; the file costs this much memory once
constexpr size_t kQuarantine = 64;                // freed blocks whose poison stays readable for kernels that come late

size_t round_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

class Arena {
 public:
  static Arena& get() {
    static Arena* arena = new Arena;  // leaked: workers may use it while the process ends
    return *arena;
  }

  void* allocate(int device, size_t bytes, const std::string& owner) {
    std::lock_guard<std::mutex> lock(mutex_);
    const size_t limit = device_memory_limit();
    if (bytes > limit || used_[device] > limit - bytes) {
      fail(kOutOfMemory, "simulated device " + std::to_string(device) + " is out of memory: " + std::to_string(bytes) +
                             " bytes asked for by " + owner + ", " + std::to_string(used_[device]) + " of " +
                             std::to_string(limit) + " bytes in use (ASCEND_SIM_DEVICE_MEMORY or fault device_memory)");
      return nullptr;
    }
    const uintptr_t address = find_gap(device, round_up(bytes, kPage) + kPage);
    if (!address || !map_poison(address, round_up(bytes, kPage))) {
      fail(kOutOfMemory, "the host has no address space or memory left for the simulated device memory (" +
                             std::to_string(bytes) + " bytes): " + std::strerror(errno));
      return nullptr;
    }
    blocks_[address] = {++allocations_, address, bytes, device, owner, false};
    used_[device] += bytes;
    return reinterpret_cast<void*>(address);
  }

  bool release(void* pointer) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = blocks_.find(reinterpret_cast<uintptr_t>(pointer));
    if (found == blocks_.end() || found->second.freed) return false;
    DeviceBlock& block = found->second;
    block.freed = true;
    used_[block.device] -= block.bytes;
    map_poison(block.address, round_up(block.bytes, kPage));
    quarantine_.push_back(block.address);
    if (quarantine_.size() > kQuarantine) {
      const auto oldest = blocks_.find(quarantine_.front());
      quarantine_.pop_front();
      close_alias(oldest->second.address, round_up(oldest->second.bytes, kPage));
      blocks_.erase(oldest);
    }
    return true;
  }

  bool find(const void* pointer, size_t bytes, DeviceBlock* block) {
    std::lock_guard<std::mutex> lock(mutex_);
    return find_locked(reinterpret_cast<uintptr_t>(pointer), bytes, block);
  }

  // For the signal handler: does not wait for the lock.
  bool try_find(const void* pointer, DeviceBlock* block) {
    std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    return lock.owns_lock() && find_locked(reinterpret_cast<uintptr_t>(pointer), 1, block);
  }

  bool contains(const void* pointer) const {
    const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
    return address >= base_ && address < base_ + span_;
  }
  bool contains_alias(const void* pointer) const {
    const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
    return address >= base_ + span_ && address < base_ + 2 * span_;
  }
  size_t distance() const { return span_; }
  size_t used(int device) {
    std::lock_guard<std::mutex> lock(mutex_);
    return used_[device];
  }

 private:
  Arena() {
    // Four times the limit per device, so that an address is not used again soon after it was freed.
    per_device_ = round_up(settings().device_memory, size_t(1) << 30) * 4;
    span_ = per_device_ * size_t(settings().npus);
    void* base = mmap(nullptr, 2 * span_ + kHugePage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
      throw std::runtime_error("simulated Ascend runtime: cannot reserve " + std::to_string(2 * span_) +
                               " bytes of address space for the device memory (" + std::strerror(errno) +
                               "); allow it with ulimit -v unlimited, or lower ASCEND_SIM_DEVICE_MEMORY or ASCEND_SIM_NPUS");
    }
    base_ = round_up(reinterpret_cast<uintptr_t>(base), kHugePage);
    for (int device = 0; device < settings().npus; ++device) cursor_[device] = base_ + size_t(device) * per_device_;
    poison_file_ = memfd_create("ascend_sim_poison", MFD_CLOEXEC);
    if (poison_file_ < 0 || ftruncate(poison_file_, kPoisonBytes) != 0) {
      throw std::runtime_error(std::string("simulated Ascend runtime: no memory file for poison: ") + std::strerror(errno));
    }
    void* poison = mmap(nullptr, kPoisonBytes, PROT_READ | PROT_WRITE, MAP_SHARED, poison_file_, 0);
    std::memset(poison, kPoison, kPoisonBytes);
    munmap(poison, kPoisonBytes);
    install_device_fault_handler();
  }

  // Next fit: goes on behind the last allocation, and starts again at the front only at the end of the range.
  uintptr_t find_gap(int device, size_t bytes) {
    const uintptr_t begin = base_ + size_t(device) * per_device_, end = begin + per_device_;
    for (uintptr_t candidate : {cursor_[device], begin}) {
      const size_t unit = bytes >= kHugePage ? kHugePage : kPage;
      candidate = round_up(candidate, unit);
      auto next = blocks_.upper_bound(candidate);
      if (next != blocks_.begin()) {
        const DeviceBlock& before = std::prev(next)->second;
        candidate = std::max(candidate, round_up(end_of(before), unit));
      }
      while (next != blocks_.end() && next->first < end && next->first < candidate + bytes) {
        candidate = std::max(candidate, round_up(end_of(next->second), unit));
        ++next;
      }
      if (candidate + bytes <= end) {
        cursor_[device] = candidate + bytes;
        return candidate;
      }
    }
    errno = ENOMEM;
    return 0;
  }

  // One page behind each block stays inaccessible, so that a kernel that runs over the end is found.
  static uintptr_t end_of(const DeviceBlock& block) { return block.address + round_up(block.bytes, kPage) + kPage; }

  // Private mappings of the poison file: pages cost memory only once they are written.
  bool map_poison(uintptr_t address, size_t bytes) {
    for (size_t offset = 0; offset < bytes; offset += kPoisonBytes) {
      void* at = reinterpret_cast<void*>(address + span_ + offset);
      if (mmap(at, std::min(kPoisonBytes, bytes - offset), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE,
               poison_file_, 0) == MAP_FAILED) {
        return false;
      }
    }
    return true;
  }

  void close_alias(uintptr_t address, size_t bytes) {
    mmap(reinterpret_cast<void*>(address + span_), bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
  }

  bool find_locked(uintptr_t address, size_t bytes, DeviceBlock* block) {
    auto next = blocks_.upper_bound(address);
    if (next == blocks_.begin()) return false;
    const DeviceBlock& candidate = std::prev(next)->second;
    if (address + bytes > candidate.address + candidate.bytes) return false;
    *block = candidate;
    return true;
  }

  std::mutex mutex_;
  uintptr_t base_ = 0;
  size_t span_ = 0, per_device_ = 0;
  int poison_file_ = -1;
  uint64_t allocations_ = 0;
  std::map<int, uintptr_t> cursor_;
  std::map<int, size_t> used_;
  std::map<uintptr_t, DeviceBlock> blocks_;  // live and in quarantine, by address
  std::deque<uintptr_t> quarantine_;
};

}  // namespace

void* allocate_device_memory(int device, size_t bytes, const std::string& owner) {
  return Arena::get().allocate(device, bytes, owner);
}

bool release_device_memory(void* pointer) { return Arena::get().release(pointer); }

bool find_device_block(const void* pointer, size_t bytes, DeviceBlock* block) {
  return Arena::get().find(pointer, bytes, block);
}

bool try_find_device_block(const void* pointer, DeviceBlock* block) { return Arena::get().try_find(pointer, block); }

bool is_device_alias(const void* pointer) { return Arena::get().contains_alias(pointer); }

const void* device_pointer_of_alias(const void* pointer) {
  return static_cast<const char*>(pointer) - Arena::get().distance();
}

std::string describe_device_pointer(const void* pointer) {
  char text[64];
  snprintf(text, sizeof text, "device pointer %p ", pointer);
  DeviceBlock block;
  if (!find_device_block(pointer, 0, &block)) return std::string(text) + "(in no allocation)";
  const size_t offset = reinterpret_cast<uintptr_t>(pointer) - block.address;
  return std::string(text) + "(offset " + std::to_string(offset) + " of allocation " + std::to_string(block.number) + ", " +
         std::to_string(block.bytes) + " bytes on device " + std::to_string(block.device) + (block.freed ? ", freed)" : ")");
}

size_t device_memory_limit() {
  size_t bytes = settings().device_memory;
  if (const std::string value = fault("device_memory"); !value.empty()) {
    size_t lowered = 0;
    if (parse_size(value, &lowered)) bytes = std::min(bytes, lowered);
  }
  return bytes;
}

size_t device_memory_used(int device) { return Arena::get().used(device); }

bool is_device_pointer(const void* pointer) { return Arena::get().contains(pointer); }

void* kernel_view(void* pointer) {
  Arena& arena = Arena::get();
  return arena.contains(pointer) ? static_cast<char*>(pointer) + arena.distance() : pointer;
}

}  // namespace ascend_sim
