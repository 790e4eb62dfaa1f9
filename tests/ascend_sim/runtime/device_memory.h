// Simulated device memory: an address range that is never accessible, and the bytes behind it at a constant distance.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "ascend_sim/runtime.h"

namespace ascend_sim {

struct DeviceBlock {
  uint64_t number = 0;   // 1 for the first allocation of the process
  uintptr_t address = 0;
  size_t bytes = 0;      // as asked for
  int device = 0;
  std::string owner;     // "aclrtMalloc" or what device_allocate was told
  bool freed = false;
};

// Gives memory on `device`, poisoned; nullptr with a message for aclGetRecentErrMsg when there is not enough.
void* allocate_device_memory(int device, size_t bytes, const std::string& owner);
// Frees and poisons; false when `pointer` is not the start of a live allocation.
bool release_device_memory(void* pointer);
// The live (or lately freed) allocation that holds [pointer, pointer + bytes); false when none does.
bool find_device_block(const void* pointer, size_t bytes, DeviceBlock* block);
// "device pointer 0x... (offset 16 of allocation 3, 512 bytes on device 0)"
std::string describe_device_pointer(const void* pointer);
size_t device_memory_limit();
size_t device_memory_used(int device);

}  // namespace ascend_sim
